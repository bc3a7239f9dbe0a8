"""Samples that are passed over because they are corrupt: each is logged, all are counted by where they lie, and there is a limit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from cfmvit.data.images import CorruptSample, log_corrupt

MAX_SKIPPED = 10_000
_NAMED = 3
_TAR = ".tar"


class Skipped:
    """The corrupt samples met so far, each once.

    Args:
        most: how many are passed over.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: dict[str, CorruptSample] = {}  # by path

    @property
    def paths(self) -> list[str]:
        """Paths of the samples, in the order in which they were met."""
        return list(self._found)

    def add(self, error: CorruptSample) -> None:
        """Note and log a sample.

        Raises:
            ValueError: there are more than ``most``; it says where, and names the first.
        """
        if error.path in self._found:
            return
        self._found[error.path] = error
        log_corrupt(error)
        if len(self._found) > self._most:
            first = "; ".join(f"{path} ({e.reason})" for path, e in list(self._found.items())[:_NAMED])
            raise ValueError(
                f"data: more than max_skipped = {self._most} corrupt samples: {by_place(self._found)}; the first are {first}"
            )


def by_place(paths: Iterable[str]) -> str:
    """Say in how many samples lie where: ``3 in train-000.tar, 1 in train-004.tar``, the worst first."""
    places = Counter(map(_place, paths))
    worst = [f"{count} in {place}" for place, count in places.most_common(_NAMED)]
    others = len(places) - len(worst)
    return ", ".join(worst) + (f" and others in {others} more places" if others else "")


def _place(path: str) -> str:
    """Return the shard of a sample, or the folder of a file."""
    shard, colon, _ = path.partition(f"{_TAR}:")
    return f"{shard}{_TAR}" if colon else os.path.dirname(path)
