"""Picture of a run as one PNG: reward and held-out accuracy, health of the policy, and time per phase.

It is drawn only from the rows of events.jsonl, so any run, finished or not, can be drawn again. A panel is left out if no row
has its metric, and the others take its place.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rl.tracking.plotting import (
    INK,
    MUTED,
    Rows,
    has_points,
    last_point,
    make_figure,
    points,
    set_style,
    smoothed,
    write_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PIXELS, HEIGHT_PIXELS = 1600, 900

_DRAFTS_PIXELS = 250
_POSITIONS = {
    1: "#2f6db5",
    2: "#1b8a5a",
    4: "#e08a3c",
    8: "#8e5bb0",
}  # of a draft, and their colours

_BLUE, _GREEN, _RED = "#2f6db5", "#1b8a5a", "#c0392b"
_PHASES = {  # label -> key, colour; in the order of a step, stacked upwards; what has no key is the rest
    "rollout": ("seconds/rollout", "#2f6db5"),
    "waiting for scores": ("seconds/score_wait", "#8fb8de"),
    "forward, backward": ("seconds/forward_backward", "#e08a3c"),
    "optimizer": ("seconds/optimizer", "#f2c48d"),
    "publish": ("seconds/publish", "#7fb69a"),
    "other": (None, "#c9d0d6"),
}
_MAX_BARS = 120


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    unit: str
    key: str  # the panel is drawn when some row has it
    draw: Callable[["Axes", Rows, str], None]


def draw_curves(events: Rows, path: Path, *, title: str) -> None:
    """Write the figure of `events` to `path`, in one atomic step."""
    draft = path.with_name(f".{path.name}.tmp")
    curves_figure(events, title=title).savefig(draft, format="png")
    os.replace(draft, path)


def curves_figure(events: Rows, *, title: str) -> "Figure":
    """Return the figure of the `step` and `evaluation` rows of `events`, without using pyplot's global state."""
    height = HEIGHT_PIXELS + _DRAFTS_PIXELS * _has(events, "speculation/proposed_tokens")
    figure = make_figure(width=WIDTH_PIXELS, height=height, title=title, subtitle=_subtitle(events))
    _draw_panels(figure, events)
    return figure


def _panels(events: Rows) -> list[list[_Panel]]:
    reward = _Panel("Reward", "mean of a step", "reward/mean", _draw_trend)
    accuracy = _Panel(
        "Held-out accuracy", "% of prompts, greedy", "evaluation/accuracy", _draw_accuracy
    )
    if any("evaluation/reward_mean" in e and "evaluation/accuracy" not in e for e in events):
        key = "evaluation/reward_mean"  # scores below 0 or above 1 are no shares
        accuracy = _Panel("Held-out reward", "mean score, greedy", key, _draw_trend)
    length = _Panel("Completion length", "tokens, mean", "rollout/length_mean", _draw_length)
    entropy = _Panel("Entropy", "nats per token", "policy/entropy", _draw_trend)
    speed = _Panel("Rollout speed", "tokens/s", "rollout/tokens_per_second", _draw_trend)
    mismatch = _Panel(
        "Trainer against engine",
        "largest log-prob difference, nats",
        "mismatch/logprob_difference_max",
        _draw_mismatch,
    )
    staleness = _Panel("Staleness", "versions, mean and largest", "staleness/mean", _draw_staleness)
    seconds = _Panel("Time of a step", "seconds", "seconds/step", _draw_seconds)
    drafts = _Panel(
        "Drafts",
        "tokens of a step: verified (blue), kept (green)",
        "speculation/proposed_tokens",
        _draw_drafts,
    )
    positions = _Panel(
        "Drafts by position",
        "% kept of the verified",
        "speculation/acceptance_at_1",
        _draw_positions,
    )
    gain = _Panel(
        "Drafts, with and without",
        "tokens/s: with drafts (blue), control steps (grey)",
        "speculation/tokens_per_second_with",
        _draw_gain,
    )
    rows = [[reward, accuracy], [length, entropy, speed, mismatch, staleness], [seconds]]
    return [*rows, [drafts, positions, gain]]


def _draw_panels(figure: "Figure", events: Rows) -> None:
    rows = [[panel for panel in row if _has(events, panel.key)] for row in _panels(events)]
    rows = [row for row in rows if row]
    if not rows:
        figure.text(0.5, 0.5, "nothing recorded yet", size=14, color=MUTED, ha="center")
        return
    grid = figure.add_gridspec(
        len(rows), 1, left=0.04, right=0.95, top=0.88, bottom=0.06, hspace=0.55,
        height_ratios=[1.3 if index == 0 else 1.0 for index in range(len(rows))],
    )  # fmt: skip
    last_step = max(event["step"] for event in events if "step" in event)
    for index, row in enumerate(rows):
        cells = grid[index].subgridspec(1, len(row), wspace=0.16 if len(row) < 3 else 0.34)
        for column, panel in enumerate(row):
            axes = figure.add_subplot(cells[column])
            set_style(axes, title=panel.title, unit=panel.unit, last_step=last_step)
            if has_points(events, panel.key):
                panel.draw(axes, events, panel.key)
            if num_lost := _num_not_finite(events, panel.key):
                note = f"{num_lost} not finite"
                axes.set_title(note, loc="right", size=9.5, weight="bold", color=_RED, pad=20)


def _draw_trend(axes: "Axes", events: Rows, key: str) -> None:
    steps, values = points(events, key)
    smooth = smoothed(values)
    _dots(axes, steps, values)
    axes.plot(steps, smooth, color=_BLUE, linewidth=2)
    step, value = last_point(steps, smooth)
    write_label(axes, step, value, _short(value), color=_BLUE)
    axes.margins(y=0.12)


def _draw_length(axes: "Axes", events: Rows, key: str) -> None:
    begun = "overprovision/length_mean_begun_at_least"
    if has_points(events, begun):
        axes.plot(*points(events, begun), ".", color=MUTED, alpha=0.5, label="all begun, at least")
        axes.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor=INK)
    _draw_trend(axes, events, key)


def _draw_accuracy(axes: "Axes", events: Rows, key: str) -> None:
    steps, values = points(events, key)
    percents = [100 * value for value in values]
    axes.plot(steps, percents, "o-", color=_GREEN, linewidth=2, markersize=6, clip_on=False)
    step, percent = last_point(steps, percents)
    write_label(axes, step, percent, f"{percent:.1f}%", color=_GREEN)
    first_step, first = last_point(steps[::-1], percents[::-1])
    if first_step < step:
        axes.axhline(first, color=_GREEN, linewidth=1, linestyle=(0, (2, 3)))
        write_label(axes, first_step, first, f"{first:.1f}%", color=_GREEN, below=True)
    axes.margins(y=0.2)


def _draw_mismatch(axes: "Axes", events: Rows, key: str) -> None:
    steps, values = points(events, key)
    positive = [value for value in values if value > 0]
    if positive:
        _dots(axes, steps, values)
        axes.set_yscale("symlog", linthresh=min(positive))
        write_label(axes, steps[-1], max(positive), f"{max(positive):.1e}", color=_BLUE)
        return
    axes.plot(steps, values, color=_BLUE, linewidth=2)
    if _num_not_finite(events, key):
        return
    axes.set_ylim(-1, 1)
    axes.set_yticks([0], ["0"])
    axes.text(
        0.5, 0.56, "0.0: bit for bit", transform=axes.transAxes, ha="center", size=11,
        weight="bold", color=_BLUE,
    )  # fmt: skip


def _draw_staleness(axes: "Axes", events: Rows, key: str) -> None:
    for name, color in (("staleness/max", MUTED), ("staleness/predicted", _GREEN)):
        axes.plot(*points(events, name), ".", color=color, alpha=0.5, label=name.partition("/")[2])
    _draw_trend(axes, events, key)
    axes.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor=INK)
    axes.set_ylim(bottom=0)


def _draw_drafts(axes: "Axes", events: Rows, key: str) -> None:
    for k, color in ((key, _BLUE), ("speculation/accepted_tokens", _GREEN)):
        step, value = _draw_smooth(axes, events, k, color=color)
        write_label(axes, step, value, _short(value), color=color, below=color is _GREEN)
    drafting = _total(events, "speculation/draft_seconds")
    rollout = _total(events, "seconds/rollout")
    if rollout:
        note = f"drafting {drafting / rollout:.1%} of the rollout time"
        axes.set_title(note, loc="right", size=9.5, color=MUTED, pad=20)
    axes.set_ylim(bottom=0)


def _draw_positions(axes: "Axes", events: Rows, _key: str) -> None:
    for position, color in _POSITIONS.items():
        key = f"speculation/acceptance_at_{position}"
        if has_points(events, key):
            step, value = _draw_smooth(axes, events, key, color=color, scale=100)
            write_label(axes, step, value, f"{position}: {value:.0f}%", color=color)
    axes.set_ylim(0, 105)


def _draw_gain(axes: "Axes", events: Rows, key: str) -> None:
    without = "speculation/tokens_per_second_without"
    step, value = _draw_smooth(axes, events, key, color=_BLUE)
    write_label(axes, step, value, _short(value), color=_BLUE)
    if has_points(events, without):
        step, value = _draw_smooth(axes, events, without, color=MUTED)
        write_label(axes, step, value, _short(value), color=MUTED, below=True)
    axes.set_ylim(bottom=0)


def _draw_smooth(
    axes: "Axes", events: Rows, key: str, *, color: str, scale: float = 1
) -> tuple[int, float]:
    """A line through the noise; returns where it ends."""
    steps, values = points(events, key)
    smooth = [scale * value for value in smoothed(values)]
    axes.plot(steps, smooth, color=color, linewidth=2, marker="o" if len(steps) == 1 else "")
    return last_point(steps, smooth)


def _draw_seconds(axes: "Axes", events: Rows, key: str) -> None:
    timed = [event for event in events if event["event"] == "step" and key in event]
    bars = _chunks(timed, at_most=_MAX_BARS)
    edges = [bar[0]["step"] - 0.5 for bar in bars] + [timed[-1]["step"] + 0.5]
    mean_step = fmean(event[key] for event in timed)
    base = [0.0] * len(bars)
    for label, (_, color) in _PHASES.items():
        mean = fmean(_phase_seconds(event)[label] for event in timed)
        if mean == 0:
            continue
        heights = [fmean(_phase_seconds(event)[label] for event in bar) for bar in bars]
        top = [low + height for low, height in zip(base, heights, strict=True)]
        note = f"{label}  {mean:.2g} s, {mean / mean_step:.0%}"
        axes.stairs(top, edges, baseline=base, fill=True, color=color, label=note)
        base = top
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(base) * 1.05)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.03), ncols=len(_PHASES), frameon=False,
        fontsize=9.5, labelcolor=INK, handlelength=0.9, handleheight=0.9, columnspacing=1.8,
        borderaxespad=0, borderpad=0,
    )  # fmt: skip


def _phase_seconds(event: Mapping[str, Any]) -> dict[str, float]:
    named = {label: event.get(key, 0.0) for label, (key, _) in _PHASES.items() if key}
    return named | {"other": max(0.0, event["seconds/step"] - sum(named.values()))}


def _chunks(rows: Rows, *, at_most: int) -> list[Rows]:
    size = math.ceil(len(rows) / at_most)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _has(events: Rows, key: str) -> bool:
    return any(key in event for event in events)


def _total(events: Rows, key: str) -> float:
    return sum(value for value in points(events, key)[1] if math.isfinite(value))


def _num_not_finite(events: Rows, key: str) -> int:
    return sum(key in event and not math.isfinite(event[key]) for event in events)


def _dots(axes: "Axes", steps: Sequence[int], values: Sequence[float]) -> None:
    axes.plot(steps, values, "o", color=_BLUE, alpha=0.3, markersize=3.5, markeredgewidth=0)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _subtitle(events: Rows) -> str:
    steps = [event["step"] for event in events if event["event"] == "step"]
    if not steps:
        return ""
    seconds = round(events[-1]["time"] - events[0]["time"])
    return f"step {max(steps)}, {timedelta(seconds=seconds)} since the start"
