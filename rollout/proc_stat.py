"""What Linux counts of its cores."""

import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["ALL_CORES", "busy_seconds"]

ALL_CORES = ("cpu",)
"""The line of /proc/stat that adds up all cores; `cpu0` and so on are single ones."""


def busy_seconds(names: Collection[str]) -> float:
    """Seconds since the machine's start in which these cores, by their names in /proc/stat, were not idle.

    NaN where /proc/stat is missing.
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
