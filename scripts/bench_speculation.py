"""Rollouts with drafts and without, in turn, one JSON line per cell. `python scripts/bench_speculation.py task.name=number_sorting`."""

import json

from rl.cli import UserError, launch
from rl.config import BenchSpeculationConfig
from rl.data.task import load_task
from rl.trainer.prompts import EncodedPrompts
from rollout.bench.machine import busy_cores, warn_if_busy
from rollout.bench.speculation import make_cell, measure_speculation
from rollout.config import Scenario
from rollout.engine.core import SamplingParams
from rollout.engine.engine import Engine


def bench(config: BenchSpeculationConfig) -> None:
    warn_if_busy(busy_cores())
    try:
        engine = Engine.from_config(config.model, config.engine)
        prompts = EncodedPrompts(load_task(config.task).train, engine.tokenizer)
        params = SamplingParams.of(config.sampling, seed=config.seed)
        for scenario in config.scenarios:
            is_tail = scenario is Scenario.TAIL
            for concurrency in [128] if is_tail else config.concurrency:
                cell = make_cell(
                    scenario,
                    lambda i: prompts[i][1],
                    params,
                    concurrency=concurrency,
                    tokens_per_run=config.tokens_per_run,
                )
                result = measure_speculation(engine, cell, pairs=config.pairs)
                print(json.dumps(result), flush=True)
    except ValueError as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    launch(bench, config_name="bench_speculation")
