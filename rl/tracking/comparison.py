"""One PNG of several runs: their rewards and their held-out accuracy, step by step."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rl.tracking.config import ReportConfig
from rl.tracking.events import read_events
from rl.tracking.plotting import MUTED, Rows, make_figure, points, set_style, smoothed, write_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["comparison_figure", "draw_comparison", "draw_runs"]

_COLORS = (
    "#2f6db5", "#1b8a5a", "#c0392b", "#8e5bb0", "#e08a3c", "#3aa6b9", "#7a5c3e", "#d45d9a", "#5f6b76", "#a3a32a",
)  # fmt: skip
_LABEL_HEIGHT = 0.035  # of a panel


def draw_runs(config: ReportConfig) -> None:
    """The picture that scripts/report.py is asked for.

    Raises:
        ValueError: a run that is none, two of the same name, or nowhere to draw to.
    """
    paths, output = [Path(run) for run in config.runs], Path(config.output)
    missing = [str(path) for path in paths if not (path / "events.jsonl").is_file()]
    if missing:
        raise ValueError(f"runs must be run directories, with an events.jsonl each; got {missing}")
    names = config.names or [path.name for path in paths]
    if len(set(names)) < len(paths):
        raise ValueError(f"two of the runs are called the same, {names}; set names=[...]")
    if not output.parent.is_dir():
        raise ValueError(f"output must be in a directory that exists, got {output}")
    events = [read_events(path / "events.jsonl") for path in paths]
    draw_comparison(dict(zip(names, events, strict=True)), output)


def draw_comparison(runs: Mapping[str, Rows], path: Path) -> None:
    """Write the figure of `runs` (name -> rows of events.jsonl) to `path`, in one atomic step."""
    draft = path.with_name(f".{path.name}.tmp")
    comparison_figure(runs).savefig(draft, format="png")
    os.replace(draft, path)


def comparison_figure(runs: Mapping[str, Rows]) -> "Figure":
    """Held-out accuracy, and the reward smoothed over a thirtieth of each run.

    Raises:
        ValueError: more runs than can be told apart.
    """
    if len(runs) > len(_COLORS):
        raise ValueError(
            f"runs must be at most {len(_COLORS)} to be told apart, got {len(runs)}; draw fewer"
        )
    figure = make_figure(
        width=1600, height=650, title=" | ".join(runs) if len(runs) < 6 else "Runs"
    )
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.04, right=0.86, top=0.82, bottom=0.09, wspace=0.32)
    last_step = max(
        (row["step"] for rows in runs.values() for row in rows if "step" in row), default=1
    )
    set_style(left, title="Reward", unit="mean of a step", last_step=last_step)
    set_style(right, title="Held-out accuracy", unit="% of prompts, greedy", last_step=last_step)
    _draw(left, runs, "reward/mean", is_noisy=True, scale=1)
    _draw(right, runs, "evaluation/accuracy", is_noisy=False, scale=100)
    return figure


def _draw(
    axes: "Axes", runs: Mapping[str, Rows], key: str, *, is_noisy: bool, scale: float
) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for (name, rows), color in zip(runs.items(), _COLORS, strict=False):
        steps, values = points(rows, key)
        if not steps:
            continue
        values = [scale * value for value in (smoothed(values) if is_noisy else values)]
        axes.plot(steps, values, "-" if is_noisy else "o-", color=color, linewidth=2, markersize=5)
        shown = f"{values[-1]:.2f}" if is_noisy else f"{values[0]:.1f} \u2192 {values[-1]:.1f}%"
        ends.append((values[-1], steps[-1], f"{name}  {shown}", color))
    if not ends:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none measured", transform=axes.transAxes, color=MUTED, ha="center")
    least = (axes.get_ylim()[1] - axes.get_ylim()[0]) * _LABEL_HEIGHT
    at = float("-inf")
    for value, step, text, color in sorted(ends):
        at = max(value, at + least)  # labels of curves that end together stand above each other
        write_label(axes, step, at, text, color=color)
