"""Descendants of this process."""

import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self


class ProcessesSince:
    """While entered, notes every process that runs beneath this one: who loses its parent is not found there any more.

    No adopting of orphans instead (PR_SET_CHILD_SUBREAPER): Ray's workers take a parent that is not 1 for their own.
    """

    def __init__(self) -> None:
        self._before = descendants()
        self._seen: set[int] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def left(self, *, seconds: float = 20.0) -> list[str]:
        """The command lines of those that still run after this time at most."""
        self._seen |= descendants() - self._before
        assert self._seen, "nothing was started"
        return [command_of(pid) for pid in wait_for_end_of(self._seen, seconds=seconds)]

    def has(self, name: str) -> bool:
        """Return whether a living descendant of this process has this name."""
        return any(name in command_of(pid) for pid in descendants() - self._before)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.1):
            self._seen |= descendants() - self._before


def descendants() -> set[int]:
    children = defaultdict(set)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it just ended
            continue
        if fields[0] != "Z":
            children[int(fields[1])].add(int(stat.parent.name))
    found, new = set(), {os.getpid()}
    while new:
        new = set().union(*(children[pid] for pid in new)) - found
        found |= new
    return found


def wait_for_end_of(pids: set[int], *, seconds: float = 20.0) -> set[int]:
    """Wait for processes to end; returns those that still run when the time is up."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if _runs(pid)}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def command_of(pid: int) -> str:
    """Its command line, or what it calls itself; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
