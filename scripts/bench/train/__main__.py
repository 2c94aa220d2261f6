"""Seconds of a training step, part by part, as one JSON line. `python -m scripts.bench.train trainer.num_steps=21`."""

import json

from rl.cli import UserError, launch
from rl.config import TrainConfig
from scripts.bench.machine import busy_cores, warn_if_busy
from scripts.bench.train.measure import measure_training


def bench(config: TrainConfig) -> None:
    warn_if_busy(busy_cores())
    try:
        result = measure_training(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    launch(bench, config_name="bench_train", schema=TrainConfig)
