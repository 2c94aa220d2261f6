"""Measures what a fleet costs, one JSON line per result. `python -m scripts.bench.fleet 'cases=[updates]' 'receivers=[1,2]'`; --help says more."""

import json
from collections.abc import Iterator
from typing import Any

from rl.cli import UserError, launch
from rollout.config import RayFleetConfig
from scripts.bench.config import BenchFleetConfig, FleetCase
from scripts.bench.fleet.asynchrony import measure_asynchrony
from scripts.bench.fleet.membership import measure_membership
from scripts.bench.fleet.updates import measure_updates
from scripts.bench.machine import busy_cores, warn_if_busy


def bench(config: BenchFleetConfig) -> None:
    warn_if_busy(busy_cores())
    try:
        for case in config.cases:
            for result in results_of(case, config):
                print(json.dumps(result), flush=True)
    except ValueError as error:
        raise UserError(str(error)) from error


def results_of(case: FleetCase, config: BenchFleetConfig) -> Iterator[dict[str, Any]]:
    if case is FleetCase.asynchrony:
        yield from measure_asynchrony(config)
        return
    if not isinstance(config.fleet, RayFleetConfig):
        raise ValueError(f"cases={case.name} needs fleet=ray, got fleet=inline")
    if case is FleetCase.updates:
        yield from weight_updates(config, num_threads=config.fleet.threads_per_worker)
    else:
        yield measure_membership(config.model, config.engine, config.fleet, repeats=config.repeats)


def weight_updates(config: BenchFleetConfig, *, num_threads: int) -> Iterator[dict[str, Any]]:
    for num_receivers in config.receivers:
        for concurrency in config.concurrency:
            yield measure_updates(
                config.model,
                config.engine,
                num_receivers=num_receivers,
                concurrency=concurrency,
                num_threads=num_threads,
                repeats=config.repeats,
                bucket_mb=config.bucket_mb,
            )


if __name__ == "__main__":
    launch(bench, config_name="bench_fleet", schema=BenchFleetConfig)
