"""The order of an epoch, without an array of it: any place of it is computed from the seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**20  # samples that are mixed with each other, or some more
_ROUNDS = 8
_WORD = 2**64 - 1


class Bijection:
    """A seeded one-to-one map of 0 .. size - 1 to itself.

    A Feistel network permutes the smallest whole number of bits that holds them; what it sends beyond ``size`` goes through it
    again until it falls inside (cycle walking; Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """

    def __init__(self, size: int, seed: tuple[int, ...]) -> None:
        bits = max(2, (size - 1).bit_length())
        self._size, self._low, self._high = size, bits // 2, bits - bits // 2
        keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)
        self._keys = [int(key) for key in keys]

    def __call__(self, number: int) -> int:
        """Return where a number goes."""
        number = self._permute(number)
        while number >= self._size:
            number = self._permute(number)
        return number

    def _permute(self, number: int) -> int:
        # Halves of unequal width change places in each round, after an even number of which they are as wide as before.
        low, high = self._low, self._high
        for key in self._keys:
            left, right = number >> low, number & ((1 << low) - 1)
            mixed = (right ^ key) * 0x9E3779B97F4A7C15 & _WORD
            mixed = (mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93 & _WORD
            number = right << high | (left ^ (mixed >> (64 - high)))
            low, high = high, low
        return number


class EpochOrder:
    """Each of 0 .. sum(sizes) - 1 once, in an order that a seed gives.

    The groups come in a seeded order, as many at a time as hold a million samples or so; these are mixed with each other
    as if they were one. So data of less than a million are mixed whole, and of more a while of training reads few shards.

    Args:
        sizes: int64 (groups,), how many consecutive numbers lie together, in a shard.
    """

    def __init__(self, sizes: NDArray[np.int64], seed: tuple[int, ...]) -> None:
        self._seed = seed
        self._groups = np.random.default_rng(seed).permutation(len(sizes))
        # Where each group ends in the shuffled order, and where it begins among the numbers.
        self._ends = sizes[self._groups].cumsum()
        self._shift = (sizes.cumsum() - self._ends[np.argsort(self._groups)])[self._groups]
        # As many groups in each block, but for one, so that none is left with few shards.
        self._blocks = min(max(1, len(self) // _BLOCK), max(1, len(sizes)))
        self._block = (-1, 0, Bijection(1, seed))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place: int) -> int:
        group = int(np.searchsorted(self._ends, place, side="right"))
        groups = len(self._ends)
        block = ((group + 1) * self._blocks - 1) // groups
        if self._block[0] != block:
            first = int(self._ends[block * groups // self._blocks - 1]) if block else 0
            last = int(self._ends[(block + 1) * groups // self._blocks - 1])
            self._block = (block, first, Bijection(last - first, (*self._seed, block)))
        _, first, mixed = self._block
        within = first + mixed(place - first)
        return within + int(self._shift[np.searchsorted(self._ends, within, side="right")])
