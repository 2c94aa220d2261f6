"""Memory of this process."""

import resource

__all__ = ["memory_metrics"]


def memory_metrics() -> dict[str, float]:
    """Return the resident memory of this process, in GB (10^9 bytes), and its peak."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "memory/rss_gb": pages * resource.getpagesize() / 1e9,
        "memory/peak_gb": peak_kib * 1024 / 1e9,
    }
