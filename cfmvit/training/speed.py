"""How fast a training goes, and how much of its time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from cfmvit.training.gradients import Batch
from cfmvit.training.world import World


class Speed:
    """Watches the clock between two looks at it.

    Args:
        batch_size: samples of a step, on all ranks.
        seconds_at_peak: that the devices of all ranks would take for a sample at their peak rate, where that is known.
    """

    def __init__(self, batch_size: int, seconds_at_peak: float | None = None) -> None:
        self._batch_size, self._at_peak = batch_size, seconds_at_peak
        self.start(0)

    def start(self, step: int) -> None:
        """Begin anew at a step; what went on since the last look does not count."""
        self._step, self._since, self._waited = step, time.perf_counter(), 0.0

    def waits(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches; the time until each is there is time waited for data."""
        while True:
            begin = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - begin
            yield batch

    def look(self, step: int, world: World) -> dict[str, float]:
        """Return ``images_per_s`` since the start, the ranks' mean of the share ``data_wait``, and ``mfu`` where it is known.

        ``mfu`` is the share of the devices' peak rate that the model's own FLOPs make up: not those of a pass that is computed
        again to save memory (Chowdhery et al., PaLM, appendix B).
        """
        seconds = time.perf_counter() - self._since
        rate = (step - self._step) * self._batch_size / seconds
        found = {"images_per_s": rate, "data_wait": float(world.mean(torch.tensor(self._waited / seconds)))}
        return found if self._at_peak is None else {**found, "mfu": rate * self._at_peak}
