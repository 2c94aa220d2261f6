"""What a fleet costs, one JSON line per case. `python scripts/bench_fleet.py 'receivers=[1,2]' 'concurrency=[0,4]'`."""

import json
from collections.abc import Iterator
from typing import Any

from rl.cli import UserError, launch
from rl.config import BenchFleetConfig
from rollout.bench.machine import busy_cores, warn_if_busy
from rollout.bench.weights import measure_updates


def bench(config: BenchFleetConfig) -> None:
    warn_if_busy(busy_cores())
    try:
        for result in weight_updates(config):
            print(json.dumps(result), flush=True)
    except ValueError as error:
        raise UserError(str(error)) from error


def weight_updates(config: BenchFleetConfig) -> Iterator[dict[str, Any]]:
    for num_receivers in config.receivers:
        for concurrency in config.concurrency:
            yield measure_updates(
                config.model,
                config.engine,
                num_receivers=num_receivers,
                concurrency=concurrency,
                num_threads=config.threads_per_receiver,
                repeats=config.repeats,
                bucket_mb=config.bucket_mb,
            )


if __name__ == "__main__":
    launch(bench, config_name="bench_fleet")
