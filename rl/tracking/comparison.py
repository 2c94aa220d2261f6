"""One PNG and one table of several runs: their rewards and their held-out accuracy, step by step.

Runs that differ only in their seed are one curve: the mean at each step, with the range between the least and the greatest.
"""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from rl.tracking.config import ReportConfig
from rl.tracking.plotting import MUTED, Rows, make_figure, points, set_style, smoothed, write_label
from rl.tracking.run_sets import find_runs, group_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Series", "compare_runs", "comparison_figure", "comparison_table", "mean_and_range"]

_COLORS = (
    "#2f6db5", "#1b8a5a", "#c0392b", "#8e5bb0", "#e08a3c", "#3aa6b9", "#7a5c3e", "#d45d9a", "#5f6b76", "#a3a32a",
)  # fmt: skip
_LABEL_HEIGHT = 0.035  # share of a panel
_REWARD, _ACCURACY = "reward/mean", "evaluation/accuracy"

Runs = Mapping[str, Sequence[Rows]]
"""Name of a curve -> the rows of events.jsonl of each of its runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric of repeated runs, at the steps at which some run has a finite value."""

    steps: list[int]
    mean: list[float]
    least: list[float]
    greatest: list[float]
    counts: list[int]
    """Runs that have a value, at each step."""


def compare_runs(config: ReportConfig) -> Table:
    """Draw the picture that `config` asks for; returns the table of the same numbers.

    Raises:
        ValueError: no run is found, names do not fit the curves, or there is nowhere to draw to.
    """
    output = Path(config.output)
    if not output.parent.is_dir():
        raise ValueError(f"output must be in a directory that exists, got {output}")
    paths = find_runs(config.runs)
    sets = group_runs(paths, group_seeds=config.group_seeds, names=config.names)
    runs = {run_set.name: run_set.events() for run_set in sets}
    draw_comparison(runs, output)
    return comparison_table(runs)


def draw_comparison(runs: Runs, path: Path) -> None:
    """Write the figure of `runs` to `path`, in one atomic step."""
    draft = path.with_name(f".{path.name}.tmp")
    comparison_figure(runs).savefig(draft, format="png")
    os.replace(draft, path)


def comparison_table(runs: Runs) -> Table:
    """Per curve: number of runs, last reward, and held-out accuracy at the first, best and last evaluation."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("", "runs", "last step", "reward", "accuracy first", "best", "last"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, repeats in runs.items():
        reward = mean_and_range(repeats, _REWARD, is_noisy=True)
        accuracy = mean_and_range(repeats, _ACCURACY)
        best = max(range(len(accuracy.mean)), key=accuracy.mean.__getitem__, default=0)
        table.add_row(
            Text(name),
            str(len(repeats)),
            str(reward.steps[-1]) if reward.steps else "",
            _cell(reward, -1, "{:.3f}"),
            *(_cell(accuracy, index, "{:.1%}") for index in (0, best, -1)),
        )
    return table


def comparison_figure(runs: Runs) -> "Figure":
    """Held-out accuracy, and the reward smoothed over a thirtieth of each run.

    Raises:
        ValueError: more curves than can be told apart.
    """
    if len(runs) > len(_COLORS):
        raise ValueError(
            f"runs must make at most {len(_COLORS)} curves to be told apart, got {len(runs)}; draw fewer"
        )
    figure = make_figure(
        width=1600, height=650, title=" | ".join(runs) if len(runs) < 6 else "Runs"
    )
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.04, right=0.86, top=0.82, bottom=0.09, wspace=0.32)
    rows = [row for repeats in runs.values() for events in repeats for row in events]
    last_step = max((row["step"] for row in rows if "step" in row), default=1)
    set_style(left, title="Reward", unit="mean of a step", last_step=last_step)
    set_style(right, title="Held-out accuracy", unit="% of prompts, greedy", last_step=last_step)
    _draw(left, runs, _REWARD, is_noisy=True, scale=1)
    _draw(right, runs, _ACCURACY, is_noisy=False, scale=100)
    return figure


def mean_and_range(repeats: Sequence[Rows], key: str, *, is_noisy: bool = False) -> Series:
    """`key` over runs, step by step; `is_noisy` smooths each run first."""
    by_step: dict[int, list[float]] = {}
    for events in repeats:
        steps, values = points(events, key)
        for step, value in zip(steps, smoothed(values) if is_noisy else values, strict=True):
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value)
    ordered = sorted(by_step.items())
    return Series(
        steps=[step for step, _ in ordered],
        mean=[statistics.fmean(values) for _, values in ordered],
        least=[min(values) for _, values in ordered],
        greatest=[max(values) for _, values in ordered],
        counts=[len(values) for _, values in ordered],
    )


def _draw(axes: "Axes", runs: Runs, key: str, *, is_noisy: bool, scale: float) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for (name, repeats), color in zip(runs.items(), _COLORS, strict=False):
        series = mean_and_range(repeats, key, is_noisy=is_noisy)
        if not series.steps:
            continue
        mean, least, greatest = (
            [scale * value for value in values]
            for values in (series.mean, series.least, series.greatest)
        )
        style = "-" if is_noisy else "o-"
        axes.plot(series.steps, mean, style, color=color, linewidth=2, markersize=5)
        if len(repeats) > 1:
            axes.fill_between(series.steps, least, greatest, color=color, alpha=0.15, linewidth=0)
        shown = f"{mean[-1]:.2f}" if is_noisy else f"{mean[0]:.1f} \u2192 {mean[-1]:.1f}%"
        number = f" ({len(repeats)} runs)" if len(repeats) > 1 else ""
        ends.append((mean[-1], series.steps[-1], f"{name}{number}  {shown}", color))
    if not ends:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none measured", transform=axes.transAxes, color=MUTED, ha="center")
    least_gap = (axes.get_ylim()[1] - axes.get_ylim()[0]) * _LABEL_HEIGHT
    at = float("-inf")
    for value, step, text, color in sorted(ends):
        at = max(value, at + least_gap)  # labels of curves that end together stand above each other
        write_label(axes, step, at, text, color=color)


def _cell(series: Series, index: int, form: str) -> str:
    """The mean, with the range where there are several runs."""
    if not series.steps:
        return "-"
    shown = form.format(series.mean[index])
    if series.counts[index] == 1:
        return shown
    return f"{shown} [{form.format(series.least[index])}, {form.format(series.greatest[index])}]"
