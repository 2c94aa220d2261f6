"""Times the same training with more and less staleness: runs like any other, whose own records are read afterwards."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rl.config import TrainConfig
from rl.runs.directory import claim_run_dir
from rl.tracking.events import read_events
from rl.trainer.build import assemble
from rollout.config import RayFleetConfig
from scripts.bench.config import BenchFleetConfig

__all__ = ["measure_asynchrony", "summarize"]

_Row = Mapping[str, Any]


def measure_asynchrony(config: BenchFleetConfig) -> Iterator[dict[str, Any]]:
    """A run at each of `config.staleness`, `config.repeats` times in turn; one result per staleness.

    Raises:
        ValueError: fewer than two steps, or a mistake in the config.
    """
    num_steps = config.trainer.num_steps
    if num_steps < 2:
        raise ValueError(f"trainer.num_steps must be >= 2, the first one warms up; got {num_steps}")
    runs: dict[int, list[Sequence[_Row]]] = {s: [] for s in config.staleness}
    for repeat in range(config.repeats):
        for max_staleness in runs:
            run_dir = Path(config.run_dir) / f"staleness{max_staleness}-{repeat}"
            runs[max_staleness].append(_steps(_run_of(config, max_staleness, run_dir)))
    for max_staleness, repeats in runs.items():
        yield {
            "measures": "asynchrony",
            "max_staleness": max_staleness,
            "fleet": "ray" if isinstance(config.fleet, RayFleetConfig) else "inline",
            "workers": config.fleet.num_workers if isinstance(config.fleet, RayFleetConfig) else 1,
            "on_update": config.engine.on_update.value,
            **summarize(repeats),
        }


def summarize(runs: Sequence[Sequence[_Row]]) -> dict[str, Any]:
    """Medians over runs, of each run's means over all steps but the first.

    Args:
        runs: the "step" rows of events.jsonl, at least two of each.
    """
    means = [_means(steps[1:]) for steps in runs]
    seconds = [run["seconds_per_step"] for run in means]
    return {
        "steps": len(runs[0]) - 1,
        "repeats": len(runs),
        **{name: round(statistics.median(run[name] for run in means), 4) for name in means[0]},
        "seconds_per_step_min": round(min(seconds), 4),
        "seconds_per_step_max": round(max(seconds), 4),
    }


def _means(steps: Sequence[_Row]) -> dict[str, float]:
    """Return means of the metrics per step, and rates over all steps."""
    seconds = _sum(steps, "seconds/step")
    num_tokens = _sum(steps, "rollout/num_tokens")
    means = {
        "seconds_per_step": seconds / len(steps),
        "seconds_waited": _sum(steps, "seconds/rollout", "seconds/score_wait") / len(steps),
        "idle_share": 1 - _sum(steps, "fleet/busy_seconds") / seconds,
        "tokens_per_second": num_tokens / seconds,
        "tokens_per_step": num_tokens / len(steps),
    }
    if "staleness/mean" in steps[0]:
        predicted = [row for row in steps if "staleness/predicted" in row]
        means["staleness"] = _sum(steps, "staleness/mean") / len(steps)
        means["staleness_max"] = max(row["staleness/max"] for row in steps)
        if predicted:
            means["staleness_predicted"] = _sum(predicted, "staleness/predicted") / len(predicted)
    return means


def _sum(rows: Sequence[_Row], *keys: str) -> float:
    return sum(row.get(key, 0.0) for row in rows for key in keys)


def _steps(config: TrainConfig) -> Sequence[_Row]:
    with ExitStack() as stack:
        stack.enter_context(claim_run_dir(config.run_dir))
        assemble(config, stack).loop.run()
    rows = read_events(Path(config.run_dir) / "events.jsonl")
    return [row for row in rows if row["event"] == "step"]


def _run_of(config: BenchFleetConfig, max_staleness: int, run_dir: Path) -> TrainConfig:
    run = TrainConfig(**{f.name: getattr(config, f.name) for f in fields(TrainConfig)})
    return replace(run, max_staleness=max_staleness, run_dir=str(run_dir))
