"""What runs beneath this process."""

import os
import time
from collections import defaultdict
from pathlib import Path


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
    """Those that still run after this time at most."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if _runs(pid)}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
