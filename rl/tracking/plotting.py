"""Common look of all figures: axes, labels, and curves through noisy points."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "MUTED",
    "Rows",
    "has_points",
    "last_point",
    "make_figure",
    "points",
    "set_style",
    "smoothed",
    "write_label",
]

INK, MUTED, _GRID = "#22303c", "#7b8794", "#e6e9ed"

Rows = Sequence[Mapping[str, Any]]


def make_figure(*, width: int, height: int, title: str, subtitle: str = "") -> "Figure":
    """Return an empty figure of `width` x `height` pixels, without using pyplot's global state."""
    from matplotlib.figure import Figure

    dpi = 100
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    figure.text(
        0.04, 0.955, title, size=17, weight="bold", color=INK, parse_math=False, va="center"
    )
    figure.text(0.95, 0.955, subtitle, size=11, color=MUTED, ha="right", va="center")
    return figure


def set_style(axes: "Axes", *, title: str, unit: str, last_step: int) -> None:
    """Style a panel whose x axis is the step."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", size=11.5, weight="bold", color=INK, pad=20)
    axes.annotate(
        unit, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points",
        size=9.5, color=MUTED, va="bottom",
    )  # fmt: skip
    axes.set_xlim(0, max(last_step, 1) * 1.01)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED, pad=5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlabel("step", size=9, color=MUTED, loc="right", labelpad=1)


def points(events: Rows, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of `key`, in order; NaN where a value is not finite, which a line leaves as a gap."""
    pairs = [(event["step"], event[key]) for event in events if key in event]
    values = [value if math.isfinite(value) else math.nan for _, value in pairs]
    return [step for step, _ in pairs], values


def has_points(events: Rows, key: str) -> bool:
    """Whether `key` has a finite value anywhere."""
    return any(key in event and math.isfinite(event[key]) for event in events)


def last_point(steps: Sequence[int], values: Sequence[float]) -> tuple[int, float]:
    """The last point that is finite.

    Raises:
        ValueError: no value is finite.
    """
    for step, value in zip(reversed(steps), reversed(values), strict=True):
        if math.isfinite(value):
            return step, value
    raise ValueError(f"none of {len(values)} values is finite")


def smoothed(values: Sequence[float]) -> list[float]:
    """Smooth a curve by a centred Gaussian average, a thirtieth of the run wide; skips NaN values, which stay NaN."""
    import numpy as np

    if not values:
        return []
    width = len(values) / 30
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    inside = slice(reach, reach + len(values))
    is_finite = np.isfinite(values)
    weighted = np.convolve(np.where(is_finite, values, 0.0), kernel)[inside]
    weights = np.convolve(is_finite.astype(float), kernel)[inside]
    return np.where(is_finite, weighted / np.where(is_finite, weights, 1.0), np.nan).tolist()


def write_label(
    axes: "Axes", x: float, y: float, text: str, *, color: str, below: bool = False
) -> None:
    axes.annotate(
        text, (x, y), xytext=(8, -16 if below else -4), textcoords="offset points", size=10.5,
        weight="bold", color=color, annotation_clip=False,
    )  # fmt: skip
