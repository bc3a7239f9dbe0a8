"""Times of several functions side by side: one call of each in turn, round after round, so that what disturbs the machine
disturbs them alike.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Run = Callable[[], Any]
LEAST_ROUNDS, MOST_ROUNDS = 7, 400
FEW_ROUNDS, MOST_SECONDS = 3, 5.0  # on a GPU, which is lent by the minute, where 7 rounds would take longer
LONG = 0.2  # seconds after which nothing is left to be warmed up
LEAST_SECONDS = 3e-4  # a shorter call is repeated, so that reading the clock costs nothing beside it
HOST_CALLS = 1000


def interleaved(
    runs: Mapping[str, Run], device: str, seconds: float, *, cold: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of a call of each function in each round, for about ``seconds`` and 7 rounds at least.

    On a GPU these are the device's, from a ``cold`` L2 cache or from what the last call left there.
    """
    clock = _cuda_clock(cold) if device == "cuda" else _cpu_clock
    once = {name: _warm(run) for name, run in runs.items()}
    repeats = {
        name: 1 if device == "cuda" else max(1, round(LEAST_SECONDS / spent)) for name, spent in once.items()
    }
    cost = sum(max(spent, 1e-3 if device == "cuda" else LEAST_SECONDS) for spent in once.values())
    least = FEW_ROUNDS if device == "cuda" and LEAST_ROUNDS * cost > MOST_SECONDS else LEAST_ROUNDS
    rounds = min(MOST_ROUNDS, max(least, int(seconds / cost)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                times[name].append(clock(runs[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return times


def host_seconds(run: Run) -> float:
    """Return the seconds that a call takes of a GPU's host: of many calls in a row, none waited for."""
    _warm(run)
    begin = time.perf_counter()
    for _ in range(HOST_CALLS):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / HOST_CALLS


def quantiles(values: list[float]) -> dict[str, float]:
    """Return p20, p50 and p80."""
    if len(values) < 2:
        return dict.fromkeys(("p20", "p50", "p80"), values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"p20": tenths[1], "p50": statistics.median(values), "p80": tenths[7]}


def _warm(run: Run) -> float:
    """Call three times, once if that takes long, and return the seconds of the last."""
    for _ in range(3):
        begin = time.perf_counter()
        run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        spent = time.perf_counter() - begin
        if spent > LONG:
            break
    return max(spent, 1e-9)


def _cpu_clock(run: Run, repeats: int) -> float:
    begin = time.perf_counter_ns()
    for _ in range(repeats):
        run()
    return (time.perf_counter_ns() - begin) * 1e-9 / repeats


def _cuda_clock(cold: bool) -> Callable[[Run, int], float]:
    """Time on the device, with the launches queued before it begins."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    other = torch.zeros(max(2 * cache, 2**26) // 4, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock(run: Run, repeats: int) -> float:
        if cold:
            other.sum()  # read: lines that were written to would go back to memory while the call is timed
        torch.cuda._sleep(1_000_000)  # cycles: about half a millisecond
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    return clock
