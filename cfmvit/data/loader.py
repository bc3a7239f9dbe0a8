"""Batches by number: batch k depends on the seed and on k, never on how one got there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cfmvit.data.images import CorruptSample
from cfmvit.data.order import EpochOrder
from cfmvit.data.remarks import Remarks
from cfmvit.data.skipped import MAX_SKIPPED, Skipped

_PATIENCE = 1000

Sample = dict[str, Any]
Order = Sequence[int] | EpochOrder  # of an epoch, by place
# A batch, or None where no sound sample was found, and the corrupt samples met in making it.
Result = tuple[Sample | None, list[CorruptSample]]


class Dataset(Protocol):
    """What the loader needs; a sample is a function of its index and the generator."""

    def __len__(self) -> int: ...

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Return one sample, or raise ``CorruptSample``."""
        ...


class SeededLoader:
    """Batches of a data set without end, each addressable by its number.

    Each epoch is a permutation (``data.order``), cut into batches; what is left over, less than one batch, waits for another
    epoch. So no sample comes twice in a batch, where a contrastive loss would take it for its own negative. Only data
    with fewer samples than a batch, and ``repeats``, repeat them. A sample's own randomness is seeded by (seed, epoch, index),
    and by its place among those of the epoch where it may come again. So the batches
    are the same for any number of workers, ranks and pieces, and an interrupted run goes on exactly.

    A corrupt sample is replaced by the next sound one that is not in the batch, logged once and counted.

    Args:
        dataset: see ``Dataset``.
        batch_size: samples in a batch of all ranks.
        workers: processes that load ahead; 0 loads in this one.
        collate: makes a batch from a list of samples.
        rank, world_size: this process takes the ``rank``-th of ``world_size`` equal parts of each batch.
        pieces: it yields its part in as many equal pieces, one after another.
        repeats: (len(dataset),) how often a sample comes in an epoch, on average; once by default.
        sizes: int64 (groups,), how many consecutive samples lie together, in a shard; not with ``repeats``.
        max_skipped: how many corrupt samples this process passes over before it refuses to go on.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 0,
        collate: Callable[[list[Sample]], Sample],
        rank: int = 0,
        world_size: int = 1,
        pieces: int = 1,
        repeats: NDArray[np.float64] | None = None,
        sizes: NDArray[np.int64] | None = None,
        max_skipped: int = MAX_SKIPPED,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("workers", workers, 0),
            ("seed", seed, 0),
            ("max_skipped", max_skipped, 0),
        ):
            if value < least:
                raise ValueError(f"SeededLoader: {name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(
                f"SeededLoader: rank must lie in 0 .. world_size - 1, got {rank} of {world_size}"
            )
        if pieces < 1 or batch_size % (world_size * pieces):
            raise ValueError(
                f"SeededLoader: batch_size must be a multiple of {world_size} ranks times {pieces} pieces, got {batch_size}"
            )
        if len(dataset) == 0:
            raise ValueError("SeededLoader: dataset must not be empty, got 0 samples")
        self.batch_size = batch_size
        self.workers = workers
        self._skipped = Skipped(max_skipped)
        self._remarks = Remarks()
        self._batches = _Batches(dataset, batch_size, seed, collate, rank, world_size, pieces, repeats, sizes)
        self.batches_per_epoch = self._batches.per_epoch

    @property
    def skipped(self) -> int:
        """Number of corrupt samples met so far."""
        return len(self._skipped.paths)

    @property
    def skipped_paths(self) -> list[str]:
        """Paths of the corrupt samples met so far."""
        return self._skipped.paths

    @property
    def remarked(self) -> int:
        """Number of samples met so far that were taken although something about them is odd; the log says what."""
        return len(self._remarks)

    def iterate(self, start: int = 0) -> Iterator[Sample]:
        """Yield pieces ``start``, ``start + 1``, ... of this rank without end; the first batch's come first.

        Raises:
            CorruptSample: 1000 samples in a row, or all there are, are corrupt.
            ValueError: more than ``max_skipped`` are.
        """
        for batch, corrupt in self._results(start):
            for error in corrupt:
                self._skipped.add(error)
            if batch is None:
                last = corrupt[-1]
                raise CorruptSample(
                    last.path, f"{last.reason}; so are all of {self._batches.patience} samples in a row"
                )
            for key, remarks in zip(batch.get("keys", ()), batch.get("remarks", ())):
                self._remarks.note(key, remarks)
            yield batch

    def _results(self, start: int) -> Iterator[Result]:
        if self.workers == 0:
            return map(self._batches.__getitem__, count(start))
        return iter(
            torch.utils.data.DataLoader(
                self._batches,
                batch_size=None,
                sampler=_From(start),
                num_workers=self.workers,
                collate_fn=_as_it_is,
                # Its own generator: the global one stays untouched, whatever the number of workers.
                generator=torch.Generator(),
            )
        )


class _Batches(torch.utils.data.Dataset[Result]):
    """Maps a piece's number to the piece and the corrupt samples met in making it."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        collate: Callable[[list[Sample]], Sample],
        rank: int,
        world_size: int,
        pieces: int,
        repeats: NDArray[np.float64] | None,
        sizes: NDArray[np.int64] | None,
    ) -> None:
        self.dataset, self.collate, self.seed = dataset, collate, seed
        self.batch_size, self.pieces = batch_size, pieces
        self.piece, self.first = batch_size // (world_size * pieces), rank * pieces
        self.patience = min(len(dataset), _PATIENCE)
        self.repeats = repeats
        self.sizes: NDArray[np.int64] = np.array([len(dataset)], np.int64) if sizes is None else sizes
        self.per_epoch = max(1, int(len(dataset) if repeats is None else repeats.sum()) // batch_size)
        self._order: tuple[int, Order] = (-1, range(0))

    def __getitem__(self, number: int) -> Result:
        number, piece = divmod(number, self.pieces)
        epoch, within = divmod(number, self.per_epoch)
        order = self._of_epoch(epoch)
        mine = range((self.first + piece) * self.piece, (self.first + piece + 1) * self.piece)
        corrupt: list[CorruptSample] = []
        samples: list[Sample] = []
        taken: set[int] = set()
        for place in mine:
            seed: tuple[int, ...] = (self.seed, epoch)
            if self.repeats is not None:
                seed = (*seed, within * self.batch_size + place)
            sample = self._load(self._candidates(order, within, place), seed, taken, corrupt)
            if sample is None:
                # Returned, not raised: what a worker raises reaches the main process as another type.
                return None, corrupt
            samples.append(sample)
        return self.collate(samples), corrupt

    def _candidates(self, order: Order, within: int, place: int) -> Iterator[int]:
        """Yield the sample of a place in a batch, then those that may replace it: its own share of the samples that are not in
        the batch, so that no other piece takes the same, the rest of them, and those of the batch last.
        """
        start, count = within * self.batch_size, len(order)
        planned = min(self.batch_size, count - start)
        yield order[start + place % planned]
        left = count - planned
        own = range(place, left, self.batch_size)
        for number in chain(own, (n for n in range(left) if n not in own)):
            yield order[(start + self.batch_size + number) % count]
        yield from (order[start + number] for number in range(planned))

    def _of_epoch(self, epoch: int) -> Order:
        if self._order[0] != epoch:
            seed: tuple[int, ...] = (self.seed, epoch)
            if self.repeats is None:
                self._order = (epoch, EpochOrder(self.sizes, seed))
            else:
                rng = np.random.default_rng(seed)
                self._order = (epoch, rng.permutation(_drawn(self.repeats, rng)).tolist())
        return self._order[1]

    def _load(
        self,
        candidates: Iterator[int],
        seed: tuple[int, ...],
        taken: set[int],
        corrupt: list[CorruptSample],
    ) -> Sample | None:
        """Load the first sound candidate that is not ``taken`` yet; where all others are, one that is."""
        for index in islice(_free_first(candidates, taken), self.patience):
            try:
                sample = self.dataset.load(index, np.random.default_rng((*seed, index)))
            except CorruptSample as error:
                corrupt.append(error)
                continue
            taken.add(index)
            return sample
        return None


def _drawn(repeats: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return each index as often as it comes in an epoch: the whole part of its number, and one more with the rest's chance.

    They are drawn systematically, so that every epoch has as many in all.
    """
    ends = repeats.cumsum()
    total = int(ends[-1])
    ends *= total / ends[-1]
    ends[-1] = total
    return np.repeat(
        np.arange(len(repeats)), np.diff(np.floor(ends + rng.random()), prepend=0).astype(np.int64)
    )


def _free_first(candidates: Iterator[int], taken: set[int]) -> Iterator[int]:
    """Yield the first one, then those that are not taken, then the others; each once, as they are asked for."""
    first = next(candidates)
    yield first
    seen, others = {first}, []
    for index in candidates:
        if index in seen:
            continue
        seen.add(index)
        if index in taken:
            others.append(index)
        else:
            yield index
    yield from others


class _From(torch.utils.data.Sampler[int]):
    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return count(self.start)


def _as_it_is(batch: Any) -> Any:
    return batch
