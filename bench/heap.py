"""The C heap during CPU benchmarks: it keeps what is freed, so that ops are measured and not the first touch of new pages.

By default glibc takes a tensor above 32 MiB from the system at each call and gives it back after it: every page of the output
faults, in every implementation alike, and that can take longer than the op. A training step may or may not pay for it; with
this, none of those compared does.
"""

from __future__ import annotations

import ctypes

import torch

_KEPT = 2**30  # bytes, for all that one op and its peers hold at a time
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> str:
    """Make the heap keep freed memory, and say what the heap is."""
    libc = _glibc()
    if libc is None:
        return "the system's"
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    # One hole for all, its pages touched: older versions do not put an aligned block where one of the same size was freed,
    # so that blocks wander.
    torch.ones(_KEPT, dtype=torch.uint8)
    return "glibc's, which keeps what is freed"


def give_back() -> None:
    """Give freed memory back to the system, so that what an op takes next shows in the size of the process."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
