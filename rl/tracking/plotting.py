"""How every figure of a project's runs looks: axes, labels, and curves made of noisy points."""

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
    "make_figure",
    "points",
    "set_style",
    "smoothed",
    "write_label",
]

INK, MUTED, _GRID = "#22303c", "#7b8794", "#e6e9ed"

Rows = Sequence[Mapping[str, Any]]


def make_figure(*, width: int, height: int, title: str, subtitle: str = "") -> "Figure":
    """An empty figure of `width` x `height` pixels; pyplot, and what it shows, is left alone."""
    from matplotlib.figure import Figure

    dpi = 100
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    figure.text(
        0.04, 0.955, title, size=17, weight="bold", color=INK, parse_math=False, va="center"
    )
    figure.text(0.95, 0.955, subtitle, size=11, color=MUTED, ha="right", va="center")
    return figure


def set_style(axes: "Axes", *, title: str, unit: str, last_step: int) -> None:
    """A panel over steps."""
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
    """Steps and finite values of `key`, in order."""
    pairs = [(event["step"], event[key]) for event in events if key in event]
    finite = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred Gaussian average, a thirtieth of the run wide; at the ends over what is there."""
    import numpy as np

    width = len(values) / 30
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    inside = slice(reach, reach + len(values))
    weighted = np.convolve(values, kernel)[inside]
    return (weighted / np.convolve(np.ones(len(values)), kernel)[inside]).tolist()


def write_label(
    axes: "Axes", x: float, y: float, text: str, *, color: str, below: bool = False
) -> None:
    axes.annotate(
        text, (x, y), xytext=(8, -16 if below else -4), textcoords="offset points", size=10.5,
        weight="bold", color=color, annotation_clip=False,
    )  # fmt: skip
