"""Busy time of CPU cores, as Linux counts it."""

import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["ALL_CORES", "busy_seconds"]

ALL_CORES = ("cpu",)
"""Line of /proc/stat that sums over all cores; single cores are `cpu0`, `cpu1` and so on."""


def busy_seconds(names: Collection[str]) -> float:
    """Return the time that the named lines of /proc/stat were not idle since the machine's start, in seconds.

    The result is NaN where /proc/stat is missing.
    """
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    ticks = 0
    for line in stat.read_text().splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, fields)
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
