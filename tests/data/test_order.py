"""The order of an epoch: every sample once, in any order, from few shards at a time, with no array of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cfmvit.data import order
from cfmvit.data.order import Bijection, EpochOrder


@pytest.mark.parametrize("size", [*range(1, 20), 1023, 1024, 1025, 30_000])
def test_every_number_goes_to_another(size: int) -> None:
    found = [Bijection(size, (3, size))(number) for number in range(min(size, 20))]
    assert len(set(found)) == len(found) and 0 <= min(found) <= max(found) < size
    mixed = Bijection(size, (4, size))
    assert sorted(map(mixed, range(size))) == list(range(size))


def test_all_orders_of_a_few_are_about_as_likely() -> None:
    count = Counter(tuple(map(Bijection(4, (seed,)), range(4))) for seed in range(4800))
    assert len(count) == 24
    chi_squared = sum((found - 200) ** 2 / 200 for found in count.values())
    assert chi_squared < 60, "the 99.99th percentile for 23 degrees of freedom is 57"


def test_neighbours_are_torn_apart() -> None:
    mixed = Bijection(20_000, (0, 1))
    found = np.array([mixed(number) for number in range(20_000)])
    assert abs(np.corrcoef(found, np.arange(20_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.03


@pytest.mark.parametrize("sizes", [[5], [7, 1, 30, 2, 60, 11], [40] * 25])
def test_an_epoch_has_every_sample_once(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_BLOCK", 100)
    epochs = []
    for epoch in range(2):
        found = EpochOrder(np.array(sizes), (9, epoch))
        epochs.append([found[place] for place in range(len(found))])
        places = np.random.default_rng(0).permutation(len(found)).tolist()
        again = EpochOrder(np.array(sizes), (9, epoch))
        assert [again[place] for place in places] == [epochs[-1][place] for place in places]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(sum(sizes)))
    assert epochs[0] != epochs[1]


def test_a_while_of_training_reads_few_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_BLOCK", 400)
    found = EpochOrder(np.full(100, 40), (1, 0))
    shards = [found[place] // 40 for place in range(len(found))]
    blocks = [set(shards[start : start + 400]) for start in range(0, 4000, 400)]
    assert all(len(block) == 10 for block in blocks)
    assert max(max(block) - min(block) for block in blocks) > 40, "which are in any order themselves"


def test_no_block_has_few_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """21 shards are two blocks, not two and one shard alone."""
    monkeypatch.setattr(order, "_BLOCK", 400)
    found = EpochOrder(np.full(21, 40), (1, 0))
    assert len({found[place] // 40 for place in range(800, 840)}) > 5


def test_a_billion_samples_have_an_order_at_once() -> None:
    found = EpochOrder(np.full(100_000, 10_000), (1, 0))
    assert len(found) == 10**9
    assert len({found[place] for place in range(10**9 - 1000, 10**9)}) == 1000
