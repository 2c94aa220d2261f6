"""Rollouts with drafts and without, in turn, one JSON line per cell. `python -m scripts.bench.speculation task.name=number_sorting`."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from rl.cli import UserError, launch
from rl.tasks.task import load_task
from rl.trainer.collect.encoded_prompts import EncodedPrompts
from rollout.build.engines import load_engine
from rollout.core import SamplingParams
from rollout.speculation.speculator import Speculator
from scripts.bench.config import BenchSpeculationConfig
from scripts.bench.machine import busy_cores, warn_if_busy
from scripts.bench.speculation.cells import expected_seconds, make_cells
from scripts.bench.speculation.history import answered_prompts, mean_tokens, past_rollouts
from scripts.bench.speculation.measure import measure_speculation


def bench(config: BenchSpeculationConfig) -> None:
    warn_if_busy(busy_cores())
    try:
        past = past_rollouts(Path(config.history_from)) if config.history_from else None
        engine = load_engine(config.model, config.engine)
        if not isinstance(engine.speculator, Speculator):
            raise ValueError("engine.speculation.drafter must not be off: nothing to compare")
        costs = engine.speculator.costs
        prompts = EncodedPrompts(load_task(config.task).train, engine.tokenizer)
        cells = make_cells(
            config.scenarios,
            config.concurrency,
            paired=config.paired_concurrency,
            pairs=config.pairs,
            prompt=lambda i: prompts[i][1],
            answered=answered_prompts(past, prompts) if past else lambda i: prompts[i][1],
            params=SamplingParams.of(config.sampling, seed=config.seed),
            tokens_per_run=config.tokens_per_run,
            tail_requests=config.tail_requests,
            mean_tokens=mean_tokens(past) if past else config.sampling.max_tokens,
        )
        seconds = [expected_seconds(cell, costs) for cell in cells]
        sys.stderr.write(f"{len(cells)} cells, at most {sum(seconds) / 60:.0f} minutes\n")
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=sum(seconds))
            for cell, cell_seconds in zip(cells, seconds, strict=True):
                bar.update(task, description=f"{cell.scenario.value}, {cell.concurrency}")
                print(json.dumps(measure_speculation(engine, cell, past=past)), flush=True)
                bar.advance(task, cell_seconds)
    except ValueError as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    launch(bench, config_name="bench_speculation", schema=BenchSpeculationConfig)
