"""Terminal output of training: a bar with the current phase, and one permanent line per step.

The bar is drawn when a phase begins and at most four times a second within a phase. No thread draws it: on two
cores that thread would take time from training. Without a terminal there are only the lines.
"""

import statistics
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

MIN_REFRESH_SECONDS = 0.25
_PHASE_SECONDS = {
    "rollout": ("seconds/rollout", "seconds/score_wait"),
    "train": ("seconds/pack", "seconds/forward_backward", "seconds/optimizer"),
}


class Progress:
    """Context manager around `total_steps` steps; no bar without a terminal, or with `enabled=False`."""

    def __init__(self, total_steps: int, *, console: Console, enabled: bool = True) -> None:
        self._total_steps = total_steps
        self._console = console
        self._phase = ""
        self._step = 0
        self._started_at = time.monotonic()
        self._refreshed_at = 0.0
        self._step_seconds: deque[float] = deque(maxlen=20)
        self._first_accuracy: float | None = None
        self._bar = _new_bar(console) if enabled and console.is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total_steps, phase="starting", times="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin_phase(self, name: str) -> None:
        """Show `name` (rollout, training, evaluation, ...) as what is going on."""
        self._phase = name
        self._show(name)

    def advance(self, done: int, total: int) -> None:
        """Show how far the current phase is, as `name done/total`."""
        if time.monotonic() - self._refreshed_at >= MIN_REFRESH_SECONDS:
            self._show(f"{self._phase} {done}/{total}")

    def step_line(self, metrics: Mapping[str, float]) -> None:
        """Print the line of one finished step; metrics that are missing are left out."""
        self._step = int(metrics["step"])
        if "seconds/step" in metrics:
            self._step_seconds.append(metrics["seconds/step"])
        self._print(_step_text(metrics, total_steps=self._total_steps))
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step)

    def evaluation_line(self, metrics: Mapping[str, float]) -> None:
        """Print the line of one evaluation, with the points gained since the first."""
        text = Text.assemble(
            ("eval  ", "cyan"),
            (f"{int(metrics['step']):>{len(str(self._total_steps))}}/{self._total_steps}", "bold"),
        )
        accuracy = metrics.get("evaluation/accuracy")
        if accuracy is None:  # scores below 0 or above 1
            text.append("  held-out reward ", "dim")
            text.append(f"{metrics['evaluation/reward_mean']:.3f}", "bold cyan")
        else:
            text.append("  held-out accuracy ", "dim").append(f"{accuracy:.1%}", "bold cyan")
            if self._first_accuracy is None:
                self._first_accuracy = accuracy
            else:
                text.append(f" ({100 * (accuracy - self._first_accuracy):+.1f} points)", "cyan")
        if "evaluation/num_prompts" in metrics:
            text.append(f"  of {metrics['evaluation/num_prompts']:,.0f} prompts", "dim")
        if "evaluation/length_mean" in metrics:
            text.append("  length ", "dim").append(f"{metrics['evaluation/length_mean']:.1f}")
        if "seconds/evaluate" in metrics:
            text.append(f"  {metrics['seconds/evaluate']:.1f} s")
        self._print(text)

    def _print(self, text: Text) -> None:
        # soft wrap: in a log file without a width, a line stays one line
        self._console.print(text, soft_wrap=True)

    def _show(self, phase: str) -> None:
        if self._bar is not None:
            self._refreshed_at = time.monotonic()
            self._bar.update(self._task, phase=phase, times=self._times(), refresh=True)

    def _times(self) -> str:
        elapsed = f"{_clock(time.monotonic() - self._started_at)} elapsed"
        if not self._step_seconds:
            return elapsed
        left = statistics.median(self._step_seconds) * (self._total_steps - self._step)
        return f"{elapsed}, {_clock(left)} left"


def _new_bar(console: Console) -> Bar:
    return Bar(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[phase]}", style="bold"),
        TextColumn("{task.fields[times]}", style="dim"),
        console=console,
        auto_refresh=False,
        transient=True,
    )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _step_text(metrics: Mapping[str, float], *, total_steps: int) -> Text:
    step = f"{int(metrics['step']):>{len(str(total_steps))}}/{total_steps}"
    text = Text.assemble(("step  ", "dim"), (step, "bold"))

    def add(label: str, key: str, form: str, style: str = "") -> None:
        if key in metrics:
            text.append(f"  {label} ", "dim").append(format(metrics[key], form), style)

    add("reward", "reward/mean", "5.3f", "bold")
    add("length", "rollout/length_mean", "5.1f")
    add("entropy", "policy/entropy", "5.3f")
    if "rollout/tokens_per_second" in metrics:
        text.append(f"  {metrics['rollout/tokens_per_second']:6,.0f}").append(" tok/s", "dim")
    if "mismatch/logprob_difference_max" in metrics:
        difference = metrics["mismatch/logprob_difference_max"]
        text.append("  mismatch ", "dim")
        text.append(
            "0.0    " if difference == 0 else f"{difference:.1e}",
            "" if difference == 0 else "yellow",
        )
    if "seconds/step" in metrics:
        text.append(f"  {metrics['seconds/step']:5.1f} s").append(_phase_seconds(metrics), "dim")
    if metrics.get("reward/error_rate", 0) > 0:
        text.append(f"  {metrics['reward/error_rate']:.0%} could not be scored", "red")
    return text


def _phase_seconds(metrics: Mapping[str, float]) -> str:
    parts = [
        f"{name} {sum(metrics.get(key, 0.0) for key in keys):.1f}"
        for name, keys in _PHASE_SECONDS.items()
        if any(key in metrics for key in keys)
    ]
    return f" ({', '.join(parts)})" if parts else ""
