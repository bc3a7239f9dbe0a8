"""Mapping over all cores."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 64


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], *, chunk: int = _CHUNK
) -> Iterator[Result]:
    """Map in order, over all cores on Linux where there is enough to do.

    The processes are forked: a spawned one would import torch first, which takes longer than most of this work.
    ``work`` must need nothing that holds locks or threads: plain NumPy and Pillow.

    Args:
        chunk: items that a process gets at once; below four times as many there is too little to do.
    """
    workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if workers == 1 or len(items) < 4 * chunk:
        yield from map(work, items)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            yield from pool.map(work, items, chunksize=chunk)
