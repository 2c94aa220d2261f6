"""Tracker: one object for everything a run records: events first, then samples, curves, the terminal and W&B."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from rich.console import Console

from rl.tracking.config import TrackingConfig
from rl.tracking.curves import draw_curves
from rl.tracking.events import EventLog, SampleLog, read_events
from rl.tracking.harmless import Harmless
from rl.tracking.plain import plain_data
from rl.tracking.progress import Progress
from rl.tracking.wandb_run.sink import WandbSink

NUM_SAMPLE_TABLES = 8
"""W&B tables of a whole run, at most, and one for what is left at the end."""


class Tracker:
    """Context manager that owns events.jsonl, samples.jsonl, curves.png, the terminal and W&B of a run.

    `progress` is there for `begin_phase` and `advance`. Leaving the context on an exception records it as the end of a run
    that has begun. Curves are drawn and W&B is finished either way. Events are appended to those that the directory holds.

    Args:
        config: the `tracking` group.
        run_dir: where everything is written.
        run_config: every key of the run, for config.yaml and W&B.
        total_steps: optimiser steps of the run.
        names: names of the chosen group options for W&B, such as {"algorithm": "ppo"}, and what else runs are filtered by.
        resumed_from: run directory whose checkpoint this run resumes from.
        console: the terminal.

    Raises:
        ValueError: W&B is wanted and cannot be used (see `WandbSink`).
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        run_config: Mapping[str, Any],
        *,
        total_steps: int,
        names: Mapping[str, str] = MappingProxyType({}),
        resumed_from: Path | None = None,
        console: Console | None = None,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self.console = console if console is not None else Console()
        plain = plain_data(run_config)
        self._wandb = WandbSink(
            config.wandb,
            run_dir,
            _with_names(plain, names),
            console=self.console,
            resumed_from=resumed_from,
            samples_every_steps=max(1, math.ceil(total_steps / NUM_SAMPLE_TABLES)),
        )
        run_dir.mkdir(parents=True, exist_ok=True)
        self._events = EventLog(run_dir / "events.jsonl")
        self._samples = SampleLog(run_dir / "samples.jsonl")
        self.progress = Progress(total_steps, console=self.console)
        self._harmless = Harmless()
        self._has_begun = False
        self._exit_code = 0

    @property
    def paths(self) -> dict[str, Path]:
        """Files that a user may look at, by name; W&B only if it recorded something."""
        names = ("curves.png", "events.jsonl", "samples.jsonl", "config.yaml")
        paths = {Path(name).stem: self._run_dir / name for name in names}
        return paths | ({"W&B": self._wandb.directory} if self._wandb.directory else {})

    def __enter__(self) -> Self:
        self.progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with (
            ExitStack() as stack
        ):  # each of these runs, whatever another one raises; the last one first
            if error is not None:
                self._exit_code = self._exit_code or 1
            stack.callback(self.progress.__exit__, kind, error, trace)
            stack.callback(lambda: self._wandb.finish(exit_code=self._exit_code))
            stack.callback(self.progress.begin_phase, "finishing")
            stack.callback(self._close_logs)
            stack.callback(self._draw_curves)
            if error is not None and self._has_begun:
                status = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
                with self._harmless("the record of the error"):  # which may be that of a full disk
                    self.run_end(status, exit_code=self._exit_code)

    def run_start(self, fields: Mapping[str, Any]) -> None:
        self._has_begun = True
        self._events.write("run_start", fields)

    def step(self, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> None:
        """Record one optimiser step, its metrics (with `step`) and, of its rollouts, `num_samples_per_step`."""
        step = int(metrics["step"])
        shown = _spread(samples, self._config.num_samples_per_step)
        self._events.write("step", metrics)
        self._samples.write(shown)
        with self._harmless("the line of a step"):
            self.progress.step_line(metrics)
        if step % self._config.curves_every_steps == 0:
            self._draw_curves()
        self._wandb.log(step, metrics, samples=shown)

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """Record one evaluation; `step` is the number of optimiser steps before it."""
        self._events.write("evaluation", metrics)
        with self._harmless("the line of an evaluation"):
            self.progress.evaluation_line(metrics)
        self._wandb.log(int(metrics["step"]), metrics)

    def checkpoint(self, fields: Mapping[str, Any]) -> None:
        self._events.write("checkpoint", fields)

    def run_end(self, fields: Mapping[str, Any], *, exit_code: int = 0) -> None:
        """Record how the run ended, here and at W&B: with the exit code of its process."""
        self._exit_code = exit_code
        self._events.write("run_end", {**fields, "exit_code": exit_code})

    def _close_logs(self) -> None:
        for log in (self._samples, self._events):
            # every row was flushed when it was written, and what failed then was raised then
            with self._harmless("closing the logs"):
                log.close()

    def _draw_curves(self) -> None:
        with self._harmless("curves.png"):
            events = read_events(self._run_dir / "events.jsonl")
            draw_curves(events, self._run_dir / "curves.png", title=self._run_dir.resolve().name)


def _with_names(run_config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the config with the chosen option of each group as its `name`, such as `algorithm.name`, to filter runs by."""
    named = dict(run_config)
    for key, name in names.items():
        group = named.get(key, {})
        named[key] = {"name": name, **group} if isinstance(group, Mapping) and group else name
    return named


def _spread(samples: Sequence[Mapping[str, Any]], num_samples: int) -> list[Mapping[str, Any]]:
    """Return at most `num_samples` samples, evenly spaced, since the first ones would all be siblings."""
    count = min(num_samples, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]
