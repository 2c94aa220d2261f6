"""Measures the machine: load by other processes, GEMM peak, memory bandwidth."""

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.linear import linear
from rollout.proc_stat import ALL_CORES, busy_seconds

__all__ = [
    "MachinePeaks",
    "busy_cores",
    "measure_peaks",
    "peak_memory_gb",
    "process_age_seconds",
    "warn_if_busy",
]

_BUSY_CORES = 0.1

_REPEATS = 15
_GEMM_ROWS, _GEMM_FEATURES = 512, 2048
_READ_BYTES = 1 << 29  # past every cache


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePeaks:
    """The best of repeated measurements in this process: nothing that disturbs one makes it faster."""

    gemm_tflops: float
    """TFLOP/s of `kernels.linear` and of PyTorch's own GEMM on a large shape, the better of the two."""
    read_gb_per_second: float
    """GB/s (10^9 bytes) of a sum over 0.5 GB."""


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that other processes keep busy, while this one sleeps; NaN where /proc/stat is missing."""
    before = busy_seconds(ALL_CORES)
    time.sleep(seconds)
    return (busy_seconds(ALL_CORES) - before) / seconds


def warn_if_busy(busy: float) -> None:
    """Warn on stderr that other processes keep cores busy, so that figures cannot be quoted."""
    if busy > _BUSY_CORES:
        sys.stderr.write(f"warning: other processes keep {busy:.1f} cores busy; do not quote\n")


def measure_peaks(dtype: torch.dtype) -> MachinePeaks:
    """Takes about three seconds; needs a quiet machine."""
    rows = torch.randn(_GEMM_ROWS, _GEMM_FEATURES).to(dtype)
    weight = torch.randn(_GEMM_FEATURES, _GEMM_FEATURES).to(dtype)
    flops = 2 * _GEMM_ROWS * _GEMM_FEATURES**2
    with torch.inference_mode():
        ours = _least_seconds(lambda: linear(rows, weight))
        theirs = _least_seconds(lambda: torch.nn.functional.linear(rows, weight))
    memory = torch.ones(_READ_BYTES // 4)
    read = _least_seconds(memory.sum)
    return MachinePeaks(
        gemm_tflops=flops / min(ours, theirs) / 1e12, read_gb_per_second=_READ_BYTES / read / 1e9
    )


def _least_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_memory_gb() -> float:
    """Resident memory of this process at its greatest, in GB (10^9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def process_age_seconds() -> float:
    """Since this process began, imports included; NaN where /proc is missing."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return float("nan")
    # the fields after the command's name, which may hold blanks; the 22nd of all is the start, in ticks since boot
    start = int(stat.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start
