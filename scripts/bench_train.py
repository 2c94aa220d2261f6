"""Seconds of a training step, part by part, as one JSON line. `python scripts/bench_train.py trainer.num_steps=21`."""

import json

from rl.bench.training import measure_training
from rl.cli import UserError, launch
from rl.config import TrainConfig
from rollout.bench.machine import busy_cores, warn_if_busy


def bench(config: TrainConfig) -> None:
    warn_if_busy(busy_cores())
    try:
        result = measure_training(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    launch(bench, config_name="bench_train")
