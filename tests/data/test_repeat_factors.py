"""Repeat-factor sampling: LVIS's rule, and how often each image really comes."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from cfmvit.data import SeededLoader
from cfmvit.data.repeat_factors import repeat_factors


def test_the_rule_is_lvis() -> None:
    """100 images: category 0 in all, 1 in ten of them, 2 in one."""
    categories = [{0} for _ in range(100)]
    for number in range(10):
        categories[number].add(1)
    categories[5].add(2)
    categories[99] = set()
    found = repeat_factors(categories, 0.4)
    assert found[5] == pytest.approx((0.4 / 0.01) ** 0.5)
    assert found[4] == pytest.approx((0.4 / 0.1) ** 0.5)
    assert found[50] == found[99] == 1


class Numbers:
    def __len__(self) -> int:
        return 40

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"index": index, "draw": float(rng.random())}


def make(**options: Any) -> SeededLoader:
    collate = lambda samples: {name: [sample[name] for sample in samples] for name in samples[0]}
    return SeededLoader(Numbers(), 8, collate=collate, repeats=np.linspace(1, 3.2, 40), **options)


def test_copies_of_an_image_are_drawn_anew() -> None:
    batches = list(itertools.islice(make().iterate(), make().batches_per_epoch))
    draws = [(i, d) for batch in batches for i, d in zip(batch["index"], batch["draw"])]
    assert len({index for index, _ in draws}) < len(draws) == len(set(draws))


def test_ranks_and_pieces_change_nothing() -> None:
    whole = list(itertools.islice(make().iterate(), 30))
    for size, pieces in ((2, 1), (2, 2), (1, 4)):
        ranks = [
            list(itertools.islice(make(rank=rank, world_size=size, pieces=pieces).iterate(), 30 * pieces))
            for rank in range(size)
        ]
        for step, batch in enumerate(whole):
            parts = [rank[step * pieces + piece] for rank in ranks for piece in range(pieces)]
            for name in batch:
                assert [value for part in parts for value in part[name]] == batch[name]


def test_each_image_comes_as_often_as_its_factor() -> None:
    factors = np.linspace(1, 3.2, 40)
    loader = make()
    assert loader.batches_per_epoch == int(factors.sum()) // 8
    epochs = 200
    batches = itertools.islice(loader.iterate(), epochs * loader.batches_per_epoch)
    count = Counter(index for batch in batches for index in batch["index"])
    # What an epoch leaves over is no batch.
    share = loader.batches_per_epoch * 8 / factors.sum()
    for index, factor in enumerate(factors):
        assert count[index] / epochs == pytest.approx(factor * share, abs=0.12)
    again = next(loader.iterate(7))
    assert again == next(itertools.islice(loader.iterate(), 7, None))
