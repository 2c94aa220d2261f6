"""Rollout throughput, one JSON line per workload. `python scripts/bench_rollout.py 'workloads=[W1,W3]' repeats=5`."""

import json
import time

from rl.cli import UserError, launch
from rl.config import BenchRolloutConfig
from rollout.bench.measure import busy_cores, measure
from rollout.bench.workloads import make_workload
from rollout.engine.engine import Engine


def bench(config: BenchRolloutConfig) -> None:
    load = busy_cores()
    start = time.monotonic()
    try:
        engine = Engine.from_config(config.model, config.engine)
        work = {name: make_workload(name, engine.tokenizer) for name in config.workloads}
    except ValueError as error:
        raise UserError(str(error)) from error
    header = {
        "engine": "paceline",
        "dtype": str(engine.decoder.embed_tokens.dtype).removeprefix("torch."),
        "start_seconds": round(time.monotonic() - start, 1),
        "load_before": load,
    }
    for name, workload in work.items():
        result = measure(engine, workload, repeats=config.repeats)
        print(json.dumps({**header, "workload": name, **result}), flush=True)


if __name__ == "__main__":
    launch(bench, config_name="bench_rollout")
