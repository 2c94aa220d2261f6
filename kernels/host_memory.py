"""Keeps freed host memory in the process.

glibc hands every freed buffer above 32 MB back to the kernel, and the next one of the same size is mapped and
zeroed anew, page by page. Logits are such buffers. Measured on the two-core machine of docs/log: `exp` of
[256, 49152] floats 28 ms into a fresh buffer, 8 ms into a kept one; forward and backward of 1,040 tokens 10.3 s
and 284,000 page faults against 8.6 s and 23,000, at the same peak memory. It takes some rounds to settle.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tell this process's allocator to reuse freed buffers; its memory then stays at its peak.

    Returns:
        Whether it did: False where the C library is not glibc, whose allocator may well keep them by itself.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))  # never
