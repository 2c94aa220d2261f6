"""Directory of a run. One process claims it before anything is written; it is removed again if it stays empty.

    <run_dir>/.lock     locked while the run lives; the kernel unlocks it when the process dies

A directory contains a run as soon as it has a step, a checkpoint or a trainer state. A failed start leaves no files.
A run that ended before its first step leaves its events, which the next run in the directory overwrites.
"""

import errno
import fcntl
import itertools
import logging
import os
import shutil
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rl.tracking.events import read_events

__all__ = ["RunDirectory", "claim_run_dir", "holds_run", "run_dir_of"]

logger = logging.getLogger("paceline")

_LOCK = ".lock"
_START_UP_FILES = ("config.yaml", "events.jsonl", "samples.jsonl", "curves.png")
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}
"""Errors of file systems without locks."""


@dataclass
class RunDirectory:
    """Claimed directory. Leaving the context releases it, and removes it if it is new and contains no run."""

    path: Path
    is_new: bool
    _lock: IO[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if not _has_event(self.path, "run_start", "step"):
            _remove_start_up(self.path, is_new=self.is_new)
        # removed before the unlock, because another process could claim the file after it
        (self.path / _LOCK).unlink(missing_ok=True)
        self._lock.close()
        if self.is_new and not any(self.path.iterdir()):
            self.path.rmdir()


def claim_run_dir(run_dir: str, *, goes_on: bool = False) -> RunDirectory:
    """Claim a directory for one run.

    Args:
        run_dir: path of the directory; empty: outputs/<date>/<time>, with a number appended if that exists.
        goes_on: whether the run in it is resumed.

    Raises:
        ValueError: the directory contains a run, a living process has claimed it, or it cannot be created.
    """
    path, is_new = _make(run_dir)
    lock = _lock(path)
    if not goes_on and holds_run(path):
        lock.close()
        raise ValueError(
            f"run_dir={path} already contains a run; continue it with resume_from={path}, choose another directory with "
            f"run_dir=..., or remove {path}"
        )
    if not goes_on:
        _remove_start_up(path, is_new=False)
    return RunDirectory(path, is_new, lock)


def holds_run(path: Path) -> bool:
    """Return whether a directory contains a step, weights or trainer states."""
    if any((path / "weights").glob("v*")) or any((path / "trainer").glob("v*")):
        return True
    return _has_event(path, "step")


def run_dir_of(path: str) -> Path | None:
    """Return the run that a path belongs to; None if there is none.

    The path may be the run's directory, its weights/, weights/LATEST, or a path inside weights/.
    """
    if not path:
        return None
    given = Path(path).expanduser()
    for candidate in (given, *given.parents[:4]):
        weights = candidate / "weights"
        if (candidate / "config.yaml").is_file() and (weights / "LATEST").is_file():
            is_within = given == candidate or given.is_relative_to(weights)
            return candidate if is_within else None
    return None


def _has_event(path: Path, *events: str) -> bool:
    log = path / "events.jsonl"
    return log.exists() and any(row["event"] in events for row in read_events(log))


def _make(run_dir: str) -> tuple[Path, bool]:
    now = datetime.now()
    default = Path("outputs", now.strftime("%Y-%m-%d"), now.strftime("%H-%M-%S"))
    try:
        if run_dir:
            return Path(run_dir), _make_if_missing(Path(run_dir))
        default.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = default if number == 1 else default.with_name(f"{default.name}-{number}")
            if _make_if_missing(path):
                return path, True
    except OSError as error:
        raise ValueError(
            f"run_dir={run_dir or default} must be a directory that can be written to: {error.strerror}; "
            "choose another with run_dir=..."
        ) from error
    raise AssertionError("itertools.count must not end")


def _make_if_missing(path: Path) -> bool:
    """Create a directory; return False if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    return True


def _lock(path: Path) -> IO[str]:
    """Lock an existing directory.

    Raises:
        ValueError: it is locked, or not writable.
    """
    while True:
        try:
            file = (path / _LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"run_dir={path} must be a directory that can be written to: {error.strerror}; "
                "choose another with run_dir=..."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"run_dir={path} belongs to a run in progress ({owner}); choose another with run_dir=..."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            logger.warning("run_dir=%s is on a file system without locks: %s", path, error.strerror)
        if _is_there(file, path / _LOCK):
            break
        file.close()  # its owner removed the file between open and lock
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _is_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_start_up(path: Path, *, is_new: bool) -> None:
    for name in _START_UP_FILES:
        (path / name).unlink(missing_ok=True)
    if is_new:
        shutil.rmtree(path / "wandb", ignore_errors=True)
