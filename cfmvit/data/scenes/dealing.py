"""Which categories stand in which image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cfmvit.data.scenes.config import SplitConfig


class _Kind(Protocol):
    @property
    def novel(self) -> bool:
        """Whether its boxes are kept from training."""
        ...


Kind = TypeVar("Kind", bound=_Kind)


def deal(
    categories: Sequence[Kind], split: SplitConfig, rng: np.random.Generator, novel_quota: int | None = None
) -> list[list[Kind]]:
    """Return the categories of every image; none twice in one image.

    Args:
        novel_quota: in how many images each novel category appears; by default as the others of its rank.
    """
    sizes = rng.integers(split.objects[0], split.objects[1] + 1, split.images)
    counts = _quotas(np.array([c.novel for c in categories]), int(sizes.sum()), split.tail, rng, novel_quota)
    deck = rng.permutation(np.repeat(np.arange(len(categories)), counts))
    hands = np.split(deck, np.cumsum(sizes)[:-1]) if split.images else []
    held = [set(hand.tolist()) for hand in hands]
    for hand, cards in zip(hands, held):
        if len(cards) < len(hand):
            _separate(hand, cards, hands, held, rng)
    return [[categories[card] for card in dict.fromkeys(hand.tolist())] for hand in hands]


def _separate(
    hand: NDArray[np.int64],
    cards: set[int],
    hands: list[NDArray[np.int64]],
    held: list[set[int]],
    rng: np.random.Generator,
) -> None:
    """Swap the repeated cards of a hand with cards of others, where neither then has one twice; a few tries each."""
    repeated = [slot for slot, card in enumerate(hand.tolist()) if card in hand[:slot]]
    for slot in repeated:
        mine = int(hand[slot])
        for number in rng.integers(0, len(hands), 64).tolist():
            other, theirs = hands[number], held[number]
            place = int(rng.integers(len(other)))
            card = int(other[place])
            if card not in cards and mine not in theirs and np.count_nonzero(other == card) == 1:
                hand[slot], other[place] = card, mine
                cards.add(card)
                theirs.remove(card)
                theirs.add(mine)
                break


def _quotas(
    novel: NDArray[np.bool_], slots: int, tail: float, rng: np.random.Generator, novel_quota: int | None
) -> NDArray[np.int64]:
    """Share ``slots`` out by shuffled rank, (rank + 4) ** -tail; the remainders go to the largest fractions."""
    counts = np.zeros(len(novel), np.int64)
    chosen = np.ones(len(novel), bool)
    if novel_quota is not None:
        counts[novel] = novel_quota
        chosen = ~novel
    rank = rng.permutation(int(chosen.sum())) + 1
    weights = (rank + 4.0) ** -tail
    exact = weights / weights.sum() * max(slots - int(counts.sum()), 0)
    shares = np.floor(exact).astype(np.int64)
    order = np.argsort(shares - exact, kind="stable")
    shares[order[: max(slots - int(counts.sum() + shares.sum()), 0)]] += 1
    counts[chosen] = shares
    return counts
