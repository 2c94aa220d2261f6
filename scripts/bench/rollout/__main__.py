"""Rollout throughput, one JSON line per workload. `python -m scripts.bench.rollout 'workloads=[W1,W3]' repeats=5`."""

import dataclasses
import json
import math

from rl.cli import UserError, launch
from rollout.build.engines import load_engine
from scripts.bench.config import BenchRolloutConfig
from scripts.bench.machine import busy_cores, measure_peaks, process_age_seconds, warn_if_busy
from scripts.bench.rollout.measure import measure
from scripts.bench.rollout.workloads import make_workload


def bench(config: BenchRolloutConfig) -> None:
    try:
        engine = load_engine(config.model, config.engine)
        start_seconds = process_age_seconds()
        work = {name: make_workload(name, engine.tokenizer) for name in config.workloads}
    except ValueError as error:
        raise UserError(str(error)) from error
    busy = busy_cores()
    warn_if_busy(busy)
    dtype = engine.decoder.embed_tokens.dtype
    peaks = measure_peaks(dtype)
    header = {
        "engine": "paceline",
        "dtype": str(dtype).removeprefix("torch."),
        "weight_dtype": config.engine.weight_dtype.value,
        "kv_dtype": config.engine.kv_dtype.value,
        "start_seconds": _known(round(start_seconds, 1)),
        "busy_cores": _known(round(busy, 2)),
        **{name: round(value, 3) for name, value in dataclasses.asdict(peaks).items()},
    }
    for name, workload in work.items():
        result = measure(engine, workload, repeats=config.repeats, peaks=peaks)
        print(json.dumps({**header, "workload": name, **result}), flush=True)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


if __name__ == "__main__":
    launch(bench, config_name="bench_rollout", schema=BenchRolloutConfig)
