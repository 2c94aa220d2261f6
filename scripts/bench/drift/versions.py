"""Loads the versions of a training run's policy for the drift benchmark, and draws its picture."""

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.tasks.task import load_task
from rl.tracking.plotting import INK, MUTED, make_figure, set_style
from rl.trainer.collect.encoded_prompts import EncodedPrompts
from rollout.build.engines import load_engine
from rollout.config import ModelConfig
from rollout.core import SampleKey, SamplingParams
from rollout.engine.engine import Engine
from rollout.speculation.drafters.history import PastRollout
from rollout.weights.store import WeightStore
from scripts.bench.config import BenchDriftConfig
from scripts.bench.drift.measure import Answers, Scorer, Version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_drift", "load_versions"]

_COLOR = "#2f6db5"


def load_versions(config: BenchDriftConfig) -> Iterator[Version]:
    """Loads each version, and samples its answers to the task's first training prompts twice.

    Raises:
        ValueError: fewer than two versions, or one that the run does not have.
    """
    store = WeightStore(Path(config.run) / "weights")
    found = store.versions() if store.root.is_dir() else []
    numbers = sorted(config.versions) or found
    if len(numbers) < 2 or not set(numbers) <= set(found):
        raise ValueError(
            f"run must be a run directory with two versions or more, versions among them: {config.run!r} has "
            f"{found}, asked for {numbers}; train with checkpoint.every_steps and checkpoint.keep"
        )
    return (_load(config, number, store.path(number)) for number in numbers)


def _load(config: BenchDriftConfig, number: int, path: Path) -> Version:
    engine = load_engine(ModelConfig(path=str(path)), config.engine)
    encoded = EncodedPrompts(load_task(config.task).train, engine.tokenizer)
    prompts = [tuple(encoded[i][1]) for i in range(config.num_prompts)]
    history, answers = (
        _answers(engine, prompts, config, seed=config.seed + epoch) for epoch in (0, 1)
    )
    most_tokens = max(map(len, prompts)) + config.sampling.max_tokens
    score = Scorer(engine.decoder, max_tokens=most_tokens, temperature=config.sampling.temperature)
    return Version(number, score, history, answers)


def _answers(
    engine: Engine, prompts: Sequence[tuple[int, ...]], config: BenchDriftConfig, *, seed: int
) -> Answers:
    params = SamplingParams.of(config.sampling, n=config.group_size, seed=seed)
    groups = engine.generate(prompts, params)
    return {
        prompt: [
            PastRollout(0, SampleKey(seed, g, i), array("i", completion.token_ids))
            for i, completion in enumerate(group)
        ]
        for g, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    }


def draw_drift(results: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Write the figure of `scripts.bench.drift.measure.measure_drift`'s results to `path`, in one atomic step."""
    draft = path.with_name(f".{path.name}.tmp")
    drift_figure(results, title=title).savefig(draft, format="png")
    os.replace(draft, path)


def drift_figure(results: Sequence[Mapping[str, Any]], *, title: str) -> "Figure":
    """Acceptance over the distance between the version that wrote the history and the one that decodes."""
    from matplotlib.ticker import AutoLocator

    subtitle = "a line per decoding version; labels: history > decoding"
    figure = make_figure(width=1100, height=700, title=title, subtitle=subtitle)
    axes = figure.add_axes((0.07, 0.1, 0.87, 0.74))
    distances = [result["kl_per_token"] for result in results]
    shares = [100 * result["accepted_share"] for result in results]
    set_style(axes, title="Draft tokens accepted, % of those tested", unit="", last_step=1)
    axes.xaxis.set_major_locator(AutoLocator())
    axes.set_xlim(-0.03 * max(distances), 1.12 * max(*distances, 1e-9))
    axes.set_ylim(0, 105)
    axes.set_xlabel("KL(decoding || history), nats per token", size=9, color=MUTED, loc="right")
    for version in sorted({result["decoding_version"] for result in results}):
        own = [result["decoding_version"] == version for result in results]
        line = sorted(compress(zip(distances, shares, strict=True), own))
        axes.plot(
            *zip(*line, strict=True), "o-", color=_COLOR, markersize=6, linewidth=1, alpha=0.8
        )
    for result, x, y in zip(results, distances, shares, strict=True):
        if result["history_version"] == result["decoding_version"]:
            continue  # all of them stand at a distance of 0, one upon the other
        label = f"{result['history_version']}>{result['decoding_version']}"
        axes.annotate(label, (x, y), xytext=(6, 4), textcoords="offset points", size=9, color=INK)
    return figure
