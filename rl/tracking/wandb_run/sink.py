"""Weights & Biases as a sink that can fail: whatever happens to it, the run goes on and events.jsonl has every row.

One `run.log` is one row, committed at once, never amended. Every row carries `step` (optimiser steps), which is the
x axis of every chart; so an evaluation after step k is a row of its own, and no row comes too late for W&B's own step.

Sampled rollouts are a few tables under the key `samples` (see `sample_tables.py`); the panel expression
`runs.history.concat["samples"]` shows all of them as one. What the run prints is in W&B's log of the console.

A thread hands the rows over: with mode online, wandb asks the server before it takes a table, for 20 s when there is
no answer, and no step may wait for that.
"""

import importlib.util
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from rl.tracking.config import WandbConfig, WandbMode
from rl.tracking.wandb_run.identity import WandbIdentity, wandb_mode
from rl.tracking.wandb_run.sample_tables import SampleTables

if TYPE_CHECKING:
    import wandb

INIT_TIMEOUT_SECONDS = 20.0
FINISH_TIMEOUT_SECONDS = 60.0
FINISH_MARGIN_SECONDS = 5.0  # so that wandb's own timeout comes first
MAX_WAITING_ROWS = 1000


class WandbSink:
    """One W&B run, recorded under `run_dir/wandb`.

    Mode online without a reachable server records offline instead, with a warning that says how to upload it later. Any
    later failure switches the sink off with one warning.

    Args:
        config: how the run is recorded, and what it is called.
        run_dir: the run directory.
        run_config: shown as the run's config.
        console: gets the warnings.
        resumed_from: run directory whose checkpoint this run resumes from; its W&B run continues.
        samples_every_steps: steps whose samples make one table.
        init_timeout_seconds: limit on the start.
        finish_timeout_seconds: limit on the end.

    Raises:
        ValueError: wandb is not installed, or the mode is online and there is no usable API key.
    """

    def __init__(
        self,
        config: WandbConfig,
        run_dir: Path,
        run_config: Mapping[str, Any],
        *,
        console: Console,
        resumed_from: Path | None = None,
        samples_every_steps: int = 1,
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
        self._tables = SampleTables(samples_every_steps)
        self._last_step = 0
        mode = wandb_mode(config)
        if mode is WandbMode.disabled:
            return
        _require_installed(mode)
        if not self._attempt(lambda: _set_up(mode, init_timeout_seconds, finish_timeout_seconds)):
            return
        if mode is WandbMode.online:
            _require_api_key()
        identity = WandbIdentity.of(config, run_dir, resumed_from=resumed_from)
        if self._attempt(lambda: self._start(mode, identity, dict(run_config))):
            self._thread.start()

    @property
    def directory(self) -> Path | None:
        """Directory of the run on this machine, as `wandb sync` takes it; None if W&B never started."""
        return self._directory

    def log(
        self, step: int, metrics: Mapping[str, float], *, samples: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Hand over one row of metrics; `samples` (keys: `SAMPLE_COLUMNS`) go into the next table."""
        run = self._run
        if run is None:
            return
        row, samples = {**metrics, "step": step}, list(samples)
        self._last_step = step
        if self._waiting.qsize() >= MAX_WAITING_ROWS:
            self._switch_off(f"it does not answer, and {MAX_WAITING_ROWS} rows wait for it")
        else:
            self._waiting.put(lambda: self._log(run, row, samples))

    def finish(self, *, exit_code: int = 0) -> None:
        """Close the run, waiting no longer than the finish timeout; an exit code but 0 marks it as failed."""
        run = self._run
        if run is None:
            return
        self._waiting.put(lambda: self._log_last_samples(run))
        self._waiting.put(lambda: run.finish(exit_code=exit_code))
        self._waiting.put(None)
        patience_seconds = self._finish_timeout_seconds + FINISH_MARGIN_SECONDS
        self._thread.join(patience_seconds)
        if self._thread.is_alive():
            self._switch_off(f"it did not take the last rows within {patience_seconds:g} s")
        self._run = None

    def _log(
        self, run: "wandb.Run", row: dict[str, Any], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        table = self._tables.add(samples) if samples else None
        run.log(row if table is None else row | {"samples": table})

    def _log_last_samples(self, run: "wandb.Run") -> None:
        table = self._tables.take()
        if table is not None:
            run.log({"step": self._last_step, "samples": table})

    def _start(self, mode: WandbMode, identity: WandbIdentity, run_config: dict[str, Any]) -> None:
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        if mode is WandbMode.offline:
            run = self._init("offline", identity, run_config)
        else:
            try:
                run = self._init("online", identity, run_config)
            except wandb.Error as error:
                # wandb keeps the id of the attempt that failed
                attempted, identity = identity, replace(identity, run_id=secrets.token_hex(4))
                run = self._init("offline", identity, run_config)
                into = f"--id {attempted.run_id} --append " if attempted.is_resumed else ""
                self._warn(
                    f"W&B cannot be reached, so this run is recorded offline: {_first_line(error)}. "
                    f"Upload it later: wandb sync {into}{Path(run.dir).parent}"
                )
        identity.save(self._run_dir)
        # without this, the x axis is W&B's count of rows
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        for name in ("evaluation/accuracy", "evaluation/reward_mean"):
            run.define_metric(name, step_metric="step", summary="max,last")
        self._run, self._directory = run, Path(run.dir).parent

    def _init(
        self,
        mode: Literal["online", "offline"],
        identity: WandbIdentity,
        run_config: dict[str, Any],
    ) -> "wandb.Run":
        import wandb

        is_online = mode == "online"
        return wandb.init(
            mode=mode,
            id=identity.run_id,
            resume="allow" if identity.is_resumed and is_online else None,
            project=identity.project,
            entity=identity.entity,
            name=identity.name,
            group=identity.group,
            tags=identity.tags,
            dir=self._run_dir,
            config=run_config,
            reinit="create_new",  # whatever else this process has logged to W&B stays untouched
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
        console="wrap",  # what is printed goes into the log of the run
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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(".")
