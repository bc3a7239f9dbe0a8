"""Peak memory of a call over its inputs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cfmvit.bench.heap import give_back
from cfmvit.bench.resident import resident_bytes

_CLEAR = Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Return the most memory that a call holds beside what was there before, its outputs included.

    On the CPU it is the larger of what PyTorch's allocator hands out and what the process grows by (Linux only), which
    also sees buffers that an op takes by itself.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return max(allocated_bytes(run), _grown(run))


def allocated_bytes(run: Callable[[], Any]) -> int:
    """Return the most that PyTorch's allocator for the CPU hands out in a call, beside what was there before."""
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what libraries write to the standard error: some builds of the profiler report each start and stop."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _grown(run: Callable[[], Any]) -> int:
    give_back()
    try:
        _CLEAR.write_text("5")  # forget the peak so far
        before = resident_bytes("VmRSS")
        run()
        return resident_bytes("VmHWM") - before
    except OSError:
        return 0
