"""Trainer processes that a run starts itself: the first rank is the process that the user started, the others are Ray actors.

    user's process   start_ranks: Ray, store, actors  ->  work(config), as rank 0     terminal, Ctrl-C, run directory, exit code
    actors           wait for                             work(config), as rank 1, 2, ...

Each finds what torchrun gives a rank: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and a store that is there already; from
there on (`join_ranks`) it makes no difference what started a rank. The actors live at most as long as the first rank.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist

from kernels.host_memory import keep_freed_memory
from rl.config import TrainConfig
from rl.runs.stop_signal import STOP_SIGNALS
from rl.trainer.ranks.group import FIRST_WAITS
from rollout.ray_session import actor_options, join_ray, reason_of

__all__ = ["RankError", "start_ranks"]

logger = logging.getLogger("paceline")

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0
"""Time for Ray to notice an actor that died, or for ranks that are done to exit."""

Work = Callable[[TrainConfig], int]


class RankError(RuntimeError):
    """A rank other than the first ended the run."""


@contextmanager
def start_ranks(work: Work, config: TrainConfig) -> Iterator[None]:
    """Run `work(config)` in `trainer.num_processes` - 1 actors as ranks 1, 2, ...; this process is rank 0 inside the block.

    Leaving the block, even on an error, ends the actors, and Ray if it was started here.

    Args:
        work: importable by its name; returns an exit code.
        config: config of the run; `fleet.address` names the cluster.

    Raises:
        ValueError: `fleet.address` names no cluster that can be joined.
        RankError: a rank did not start, failed or died; inside it takes the place of the error that this caused.
    """
    trainer, fleet = config.trainer, config.fleet
    with ExitStack() as stack:
        ray = _ray(fleet.address, stack)
        others = _Others(config, host=ray.util.get_node_ip_address())
        stack.enter_context(closing(others))
        others.start(fleet.start_seconds)
        stack.enter_context(_as_first(others.variables(0), num_threads=trainer.threads_per_process))
        others.run(work, config)
        try:
            yield
        except RuntimeError as error:  # as that of a collective whose other end is gone
            failure = others.wait_for_failure(_GRACE_SECONDS)
            if failure is None:
                raise
            raise RankError(failure) from error
        failure = others.wait_for_failure(_GRACE_SECONDS)
        if failure is not None:
            logger.warning("%s, when all was done", failure)


class _Others:
    """All ranks but the first.

    Args:
        config: config of the run.
        host: address at which they reach this process.
    """

    def __init__(self, config: TrainConfig, *, host: str) -> None:
        import ray

        self._ray = ray
        self._config = config
        self._host = host
        self._count = config.trainer.num_processes
        # as torchrun's agent has it; its port is free without a guess
        self._store: dist.TCPStore | None = dist.TCPStore(
            host, 0, self._count, is_master=True, wait_for_workers=False
        )
        self._port = self._store.port
        self._actors: dict[int, Any] = {}
        self._runs: dict[Any, int] = {}  # ranks, by the future of their work
        self._is_closing = Event()
        self._watch = Thread(target=self._watch_over, name="ranks", daemon=True)

    def variables(self, rank: int) -> dict[str, str]:
        """Return the environment variables of a rank."""
        return {
            "RANK": str(rank),
            "LOCAL_RANK": "0",  # a process sees no devices but its own
            "WORLD_SIZE": str(self._count),
            "MASTER_ADDR": self._host,
            "MASTER_PORT": str(self._port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the first rank need not make one
        }

    def start(self, timeout_seconds: float) -> None:
        """Start the actors, and return when all have started.

        Raises:
            RankError: one is not, and why.
        """
        address, threads = self._config.fleet.address, self._config.trainer.threads_per_process
        for rank in range(1, self._count):
            options = actor_options(address, num_threads=threads, variables=self.variables(rank))
            remote = self._ray.remote(RankProcess).options(**options)
            self._actors[rank] = remote.remote(threads, str(Path.cwd()))
        ready = {actor.ready.remote(): rank for rank, actor in self._actors.items()}
        done, missing = self._ray.wait(list(ready), num_returns=len(ready), timeout=timeout_seconds)
        failure = self._failure_among({future: ready[future] for future in done})
        if failure is not None:
            raise RankError(failure)
        if missing:
            ranks = ", ".join(str(rank) for rank in sorted(ready[future] for future in missing))
            raise RankError(
                f"{len(missing)} of {self._count} trainer processes (rank {ranks}) did not start within "
                f"fleet.start_seconds={timeout_seconds:g}; each asks the cluster for "
                f"trainer.threads_per_process={threads} cores"
            )

    def run(self, work: Work, config: TrainConfig) -> None:
        for rank, actor in self._actors.items():
            self._runs[actor.run.remote(work, config)] = rank
        self._watch.start()

    def wait_for_failure(self, timeout_seconds: float) -> str | None:
        """Wait until all have ended or the time is over; returns which rank failed, and why, or None."""
        futures = list(self._runs)
        done, _ = self._ray.wait(futures, num_returns=len(futures), timeout=timeout_seconds)
        return self._failure_among({future: self._runs[future] for future in done})

    def close(self) -> None:
        self._is_closing.set()
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._watch.ident is not None:
            self._watch.join()
        self._store = None

    def _failure_among(self, done: Mapping[Any, int]) -> str | None:
        """Describe the failure that caused the others; None if no rank failed."""
        errors = {rank: self._error(future) for future, rank in done.items()}
        failures = [(rank, error) for rank, error in sorted(errors.items()) if error is not None]
        if not failures:
            return None
        rank, error = min(failures, key=lambda failure: _remoteness(failure[1]))
        name = f"rank {rank} of {self._count}"
        if isinstance(error, self._ray.exceptions.RayTaskError):
            _, _, traceback = str(error).partition("\n")  # the first line is Ray's own
            logger.error("%s, at\n%s", name, traceback)
            return f"{name} failed: {type(error.cause).__name__}: {error.cause}"
        return f"{name} ended: {reason_of(error)}"

    def _error(self, future: Any) -> Exception | None:
        try:
            self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            return error
        return None

    def _watch_over(self) -> None:
        """Close the store when a rank fails, in which the first may wait for it to join, for half an hour."""
        running, has_failed = list(self._runs), False
        while running and not has_failed and not self._is_closing.is_set():
            done, running = self._ray.wait(running, timeout=_POLL_SECONDS)
            has_failed = any(self._error(future) is not None for future in done)
        while has_failed and self._store is not None and not self._is_closing.wait(_POLL_SECONDS):
            # not before it waits: to a store that is closed it tries to connect for as long
            if self._store.check([FIRST_WAITS]):
                self._store = None


def _remoteness(error: Exception) -> int:
    """Return how far an error is from the cause: ranks that lose the connection to a failed rank raise a RuntimeError."""
    cause = getattr(error, "cause", None)
    return 0 if cause is None else 1 + isinstance(cause, RuntimeError)


class RankProcess:
    """The actor of one rank.

    Args:
        num_threads: number of threads of torch.
        directory: that relative paths start from, where there is such a one on this node.
    """

    def __init__(self, num_threads: int, directory: str) -> None:
        # signals reach every process of a terminal or of a job, and when to stop is the first rank's decision
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        keep_freed_memory()
        torch.set_num_threads(num_threads)
        if Path(directory).is_dir():
            os.chdir(directory)

    def ready(self) -> None:
        """Answers when the process is there."""

    def run(self, work: Work, config: TrainConfig) -> int:
        try:
            return work(config)
        except SystemExit as leave:  # after another rank, which says why
            return int(leave.code or 0)


def _ray(address: str, stack: ExitStack) -> Any:
    import ray

    if join_ray(address):
        stack.callback(ray.shutdown)
    return ray


@contextmanager
def _as_first(variables: Mapping[str, str], *, num_threads: int) -> Iterator[None]:
    """Set a rank's variables and threads inside the block, and restore the old ones afterwards."""
    threads_before = torch.get_num_threads()
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
