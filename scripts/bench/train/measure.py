"""Times training steps: a run like any other, whose own record is read afterwards."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl.config import TrainConfig
from rl.runs.directory import claim_run_dir
from rl.tracking.events import read_events
from rl.trainer.build import assemble
from rollout.models.checkpoint import torch_dtype
from scripts.bench.machine import MachinePeaks, measure_peaks

__all__ = ["measure_training", "summarize"]

_PARTS = {
    "rollout": "rollout",
    "score_wait": "reward",
    "ask": "ask",
    "pack": "pack",
    "optimizer": "optimizer",
    "publish": "weight_update",
}


def measure_training(config: TrainConfig) -> dict[str, Any]:
    """Run `config` and summarise its steps; the first one warms up.

    Raises:
        ValueError: fewer than two steps, or a mistake in the config.
    """
    if config.trainer.num_steps < 2:
        raise ValueError(
            f"trainer.num_steps must be >= 2, the first one warms up; got {config.trainer.num_steps}"
        )
    dtype = torch_dtype(config.model.dtype, "cpu")
    with ExitStack() as stack:
        directory = stack.enter_context(claim_run_dir(config.run_dir))
        config = replace(config, run_dir=str(directory.path))
        run = assemble(config, stack)
        run.loop.run()
    peaks = measure_peaks(dtype)  # afterwards: its half gigabyte is not the run's
    rows = read_events(Path(config.run_dir) / "events.jsonl")
    steps = [row for row in rows if row["event"] == "step"]
    return {
        "trainer": "paceline",
        "dtype": str(dtype).removeprefix("torch."),
        "algorithm": type(config.algorithm).__name__.removesuffix("Config"),
        **summarize(steps, num_parameters=run.num_parameters, peaks=peaks),
    }


def summarize(
    steps: Sequence[Mapping[str, Any]], *, num_parameters: int, peaks: MachinePeaks
) -> dict[str, Any]:
    """Medians over all steps but the first, in seconds.

    The share of the GEMM peak counts 2 operations per parameter for a sampled token and 6 for one that is trained on, which
    those of samples without signal are not, and nothing for prompts and attention: what must be done at least.

    Args:
        steps: "step" rows of events.jsonl, at least two.
        num_parameters: number of parameters of the policy.
        peaks: peak rates of the machine.
    """
    timed = steps[1:]
    seconds = [row["seconds/step"] for row in timed]
    median = statistics.median(seconds)
    parts = {name: _median(timed, f"seconds/{key}") for key, name in _PARTS.items()}
    backward = _median(timed, "seconds/backward")
    parts["forward"] = round(_median(timed, "seconds/forward_backward") - backward, 3)
    parts["backward"] = backward
    num_tokens = statistics.median(row["rollout/num_tokens"] for row in timed)
    num_trained = statistics.median(row.get("training/num_tokens", 0) for row in timed)
    flops = (2 * num_tokens + 6 * num_trained) * num_parameters
    return {
        "steps": len(timed),
        "step_seconds": round(median, 3),
        "step_seconds_min": round(min(seconds), 3),
        "step_seconds_max": round(max(seconds), 3),
        **{f"seconds_{name}": value for name, value in parts.items()},
        "seconds_other": round(median - sum(parts.values()), 3),
        "tokens_per_second": round(num_tokens / median, 1),
        "length_mean": round(_median(timed, "rollout/length_mean"), 1),
        "share_of_gemm_peak": round(flops / median / (peaks.gemm_tflops * 1e12), 3),
        "gemm_tflops": round(peaks.gemm_tflops, 3),
        "peak_memory_gb": round(max(row["memory/peak_gb"] for row in steps), 2),
        "rewards": [round(row["reward/mean"], 3) for row in steps],
    }


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return round(statistics.median(row.get(key, 0.0) for row in rows), 3)
