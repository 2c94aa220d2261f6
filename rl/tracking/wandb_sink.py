"""Weights & Biases as a sink that can fail: whatever happens to it, the run goes on and events.jsonl has every row.

One `run.log` is one row, committed at once, never amended. Every row carries `step` (optimiser steps), which is the
x axis of every chart; so an evaluation after step k is a row of its own, and no row comes too late for W&B's own step.

Sample tables: a small table in each row, all under the key `samples`; the panel expression
`runs.history.concat["samples"]` shows all of them as one. A MUTABLE table is uploaded whole at every step, and an
INCREMENTAL one names all its earlier parts in every row: measured with wandb 0.31, both are quadratic in steps, this
is linear.

A thread hands the rows over: with mode `online`, wandb asks the server before it takes a table, for 20 s when there is
no answer, and no step may wait for that.
"""

import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from rl.tracking.config import WandbConfig, WandbMode
from rl.tracking.events import SAMPLE_COLUMNS

if TYPE_CHECKING:
    import wandb

INIT_TIMEOUT_SECONDS = 20.0
FINISH_TIMEOUT_SECONDS = 60.0
FINISH_MARGIN_SECONDS = 5.0  # so that wandb's own timeout comes first
MAX_WAITING_ROWS = 1000


class WandbSink:
    """One W&B run, recorded under `run_dir/wandb`.

    `online` without a reachable server falls to recording offline, with a warning that says how to upload it later. Any
    later failure switches the sink off with one warning.

    Raises:
        ValueError: wandb is not installed, or mode is `online` and there is no usable API key.
    """

    def __init__(
        self,
        config: WandbConfig,
        run_dir: Path,
        run_config: Mapping[str, Any],
        *,
        console: Console,
        init_timeout_seconds: float = INIT_TIMEOUT_SECONDS,
        finish_timeout_seconds: float = FINISH_TIMEOUT_SECONDS,
    ) -> None:
        self._run_dir = run_dir
        self._console = console
        self._run: wandb.Run | None = None
        self._directory: Path | None = None
        self._is_off = False
        self._finish_timeout_seconds = finish_timeout_seconds
        self._waiting: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._drain, name="wandb", daemon=True)
        if config.mode is WandbMode.disabled:
            return
        _require_installed(config.mode)
        if not self._attempt(
            lambda: _set_up(config.mode, init_timeout_seconds, finish_timeout_seconds)
        ):
            return
        if config.mode is WandbMode.online:
            _require_api_key()
        if self._attempt(lambda: self._start(config, dict(run_config))):
            self._thread.start()

    @property
    def directory(self) -> Path | None:
        """Where W&B keeps the run on this machine, as `wandb sync` wants it; None: it never started."""
        return self._directory

    def log(
        self, step: int, metrics: Mapping[str, float], *, samples: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Hand over one row: metrics, and a table of `samples` (keys: `SAMPLE_COLUMNS`) if there are any."""
        run = self._run
        if run is None:
            return
        row, samples = {**metrics, "step": step}, list(samples)
        if self._waiting.qsize() >= MAX_WAITING_ROWS:
            self._switch_off(f"it does not answer, and {MAX_WAITING_ROWS} rows wait for it")
        else:
            self._waiting.put(
                lambda: run.log(row | {"samples": _table(samples)} if samples else row)
            )

    def finish(self, *, exit_code: int = 0) -> None:
        """Close the run, waiting no longer than the finish timeout; an exit code but 0 marks it as failed."""
        run = self._run
        if run is None:
            return
        self._waiting.put(lambda: run.finish(exit_code=exit_code))
        self._waiting.put(None)
        patience_seconds = self._finish_timeout_seconds + FINISH_MARGIN_SECONDS
        self._thread.join(patience_seconds)
        if self._thread.is_alive():
            self._switch_off(f"it did not take the last rows within {patience_seconds:g} s")
        self._run = None

    def _start(self, config: WandbConfig, run_config: dict[str, Any]) -> None:
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        if config.mode is WandbMode.offline:
            run = self._init("offline", config, run_config)
        else:
            try:
                run = self._init("online", config, run_config)
            except wandb.Error as error:
                run = self._init("offline", config, run_config)
                self._warn(
                    f"W&B cannot be reached, so this run is recorded offline: {_first_line(error)}. "
                    f"Upload it later: wandb sync {Path(run.dir).parent}"
                )
        # without this, the x axis is W&B's count of rows
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._run, self._directory = run, Path(run.dir).parent

    def _init(
        self, mode: Literal["online", "offline"], config: WandbConfig, run_config: dict[str, Any]
    ) -> "wandb.Run":
        import wandb

        return wandb.init(
            mode=mode,
            project=config.project,
            name=config.name or self._run_dir.name,
            dir=self._run_dir,
            config=run_config,
            reinit="create_new",  # whatever else this process has logged to W&B is left alone
        )

    def _drain(self) -> None:
        while (action := self._waiting.get()) is not None and self._attempt(action):
            pass

    def _attempt(self, action: Callable[[], object]) -> bool:
        try:
            action()
        # wandb is another process and another company's service, and raises anything; no run may die of it
        except Exception as error:  # noqa: BLE001
            self._switch_off(_first_line(error))
            return False
        return True

    def _switch_off(self, reason: str) -> None:
        if self._is_off:
            return
        self._is_off, self._run = True, None
        cure = f" Upload what W&B has: wandb sync {self._directory}" if self._directory else ""
        events = self._run_dir / "events.jsonl"
        self._warn(
            f"W&B is off from here on: {reason}. The run goes on, and {events} has every row.{cure}"
        )

    def _warn(self, message: str) -> None:
        self._console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _require_installed(mode: WandbMode) -> None:
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"tracking.wandb.mode={mode.name} needs the package wandb, which is not installed; "
            'run pip install "paceline[wandb]", or set tracking.wandb.mode=disabled'
        )


def _set_up(mode: WandbMode, init_timeout_seconds: float, finish_timeout_seconds: float) -> None:
    """Settings of every wandb call in this process: nothing on the terminal, nothing that waits for ever."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        mode=mode.value,  # beats WANDB_MODE, which would hide the API key
        init_timeout=init_timeout_seconds,
        finish_timeout=finish_timeout_seconds,
        finish_timeout_raises=True,
    )
    wandb.setup(settings=settings)


def _require_api_key() -> None:
    import wandb

    cure = "run `wandb login`, set WANDB_API_KEY, or set tracking.wandb.mode=offline"
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ValueError(f"tracking.wandb.mode=online: {error}; {cure}") from error
    if not found:
        raise ValueError(f"tracking.wandb.mode=online needs an API key, and none was found; {cure}")


def _table(samples: Sequence[Mapping[str, Any]]) -> "wandb.Table":
    import wandb

    # an answer may be a number in one row and text in the next; W&B wants one type per column
    rows = [{**sample, "answer": str(sample["answer"])} for sample in samples]
    return wandb.Table(
        columns=list(SAMPLE_COLUMNS),
        data=[[row[column] for column in SAMPLE_COLUMNS] for row in rows],
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(".")
