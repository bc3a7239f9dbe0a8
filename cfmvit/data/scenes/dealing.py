"""Which categories stand in which image."""

from __future__ import annotations

import numpy as np

from cfmvit.data.scenes.config import SplitConfig
from cfmvit.data.scenes.vocabulary import Composition


def deal(
    categories: list[Composition], split: SplitConfig, rng: np.random.Generator, rare_quota: int | None = None
) -> list[list[Composition]]:
    """Return the categories of every image; none twice in one image.

    Args:
        rare_quota: how often each novel category appears; by default as often as others of its rank.
    """
    sizes = rng.integers(split.objects[0], split.objects[1] + 1, split.images)
    slots = int(sizes.sum())
    counts = _quotas(categories, slots, split.tail, rng, rare_quota)
    deck = rng.permutation(np.repeat(np.arange(len(categories)), counts))
    ends = np.cumsum(sizes)
    owner = np.repeat(np.arange(split.images), sizes)
    hands = [set(deck[end - size : end].tolist()) for end, size in zip(ends, sizes)]
    for image in np.flatnonzero([len(hand) < size for hand, size in zip(hands, sizes)]):
        _separate(deck, int(ends[image] - sizes[image]), int(ends[image]), owner, hands, rng)
    return [
        [categories[number] for number in dict.fromkeys(deck[end - size : end].tolist())]
        for end, size in zip(ends, sizes)
    ]


def _separate(
    deck: np.ndarray, start: int, end: int, owner: np.ndarray, hands: list[set[int]], rng: np.random.Generator
) -> None:
    """Swap the repeated cards of one hand with cards of others, where both hands gain; a few tries each."""
    seen: set[int] = set()
    for slot in range(start, end):
        card = int(deck[slot])
        if card in seen:
            for other in rng.integers(0, len(deck), 64).tolist():
                offered = int(deck[other])
                mine, theirs = hands[owner[slot]], hands[owner[other]]
                if offered not in mine and card not in theirs:
                    deck[slot], deck[other] = offered, card
                    mine.add(offered)
                    theirs.discard(offered)
                    theirs.add(card)
                    break
        seen.add(int(deck[slot]))


def _quotas(
    categories: list[Composition], slots: int, tail: float, rng: np.random.Generator, rare_quota: int | None
) -> np.ndarray:
    """Share ``slots`` out by rank ** -tail, ranks being shuffled; the remainders go to the largest fractions."""
    novel = np.array([category.novel for category in categories])
    counts = np.zeros(len(categories), int)
    chosen = np.ones(len(categories), bool)
    if rare_quota is not None:
        counts[novel] = rare_quota
        chosen = ~novel
    rank = rng.permutation(int(chosen.sum())) + 1
    weights = (rank + 4.0) ** -tail
    exact = weights / weights.sum() * max(slots - counts.sum(), 0)
    shares = np.floor(exact).astype(int)
    order = np.argsort(shares - exact, kind="stable")
    shares[order[: slots - int(counts.sum()) - int(shares.sum())]] += 1
    counts[chosen] = shares
    return counts
