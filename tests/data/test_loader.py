"""Batches are addressed by number; corrupt samples are skipped, counted and named."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch

from cfmvit.data import CorruptSample, SeededLoader
from cfmvit.data.remarks import Remarks
from cfmvit.data.skipped import by_place


class Numbers:
    """Samples that tell their index and one draw of their generator; some are corrupt."""

    def __init__(self, count: int, corrupt: tuple[int, ...] = ()) -> None:
        self.count, self.corrupt = count, corrupt

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        if index in self.corrupt:
            raise CorruptSample(f"photos/{index}.jpg", "truncated")
        return {"index": index, "draw": float(rng.random())}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"index": [s["index"] for s in samples], "draw": [s["draw"] for s in samples]}


def take(loader: SeededLoader, count: int, start: int = 0) -> list[dict[str, Any]]:
    return list(itertools.islice(loader.iterate(start), count))


def make(dataset: Numbers, batch_size: int = 4, **options: Any) -> SeededLoader:
    return SeededLoader(dataset, batch_size, collate=collate, **options)


def test_every_sample_comes_once_an_epoch_in_another_order() -> None:
    stream = [i for batch in take(make(Numbers(12)), 6) for i in batch["index"]]
    assert sorted(stream[:12]) == sorted(stream[12:]) == list(range(12))
    assert stream[:12] != stream[12:]
    assert stream[:12] != list(range(12))


@pytest.mark.parametrize("count", [4, 5, 7, 10, 48])
def test_no_sample_comes_twice_in_a_batch(count: int) -> None:
    loader = make(Numbers(count, corrupt=(1,) if count > 5 else ()))
    batches = take(loader, 40)
    assert all(len(set(batch["index"])) == 4 for batch in batches)
    assert loader.batches_per_epoch == count // 4
    seen = [i for batch in batches for i in batch["index"]]
    assert len(set(seen)) == count - (count > 5), "what an epoch leaves over comes in another"


def test_samples_draw_anew_every_epoch() -> None:
    batches = take(make(Numbers(8)), 4)
    draws = [
        {index: draw for b in part for index, draw in zip(b["index"], b["draw"])}
        for part in (batches[:2], batches[2:])
    ]
    assert draws[0].keys() == draws[1].keys()
    assert not set(draws[0].values()) & set(draws[1].values())


@pytest.mark.parametrize("workers", [0, 2])
def test_any_batch_can_be_the_first(workers: int) -> None:
    everything = take(make(Numbers(11, corrupt=(3,))), 9)
    assert take(make(Numbers(11, corrupt=(3,)), workers=workers), 4, start=5) == everything[5:9]


def test_the_number_of_workers_changes_nothing() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    alone, with_two = make(Numbers(11, corrupt=(3, 8))), make(Numbers(11, corrupt=(3, 8)), workers=2)
    assert take(alone, 7) == take(with_two, 7)
    assert alone.skipped_paths == with_two.skipped_paths
    assert torch.equal(torch.get_rng_state(), before), "the global generator must be left alone"


def test_seeds_differ() -> None:
    assert take(make(Numbers(50), seed=0), 2) != take(make(Numbers(50), seed=1), 2)


def test_ranks_share_each_epoch() -> None:
    whole = take(make(Numbers(40, corrupt=(2, 9, 30)), 8), 20)
    for world_size, pieces in ((2, 1), (1, 4), (2, 2), (4, 2)):
        options = {"world_size": world_size, "pieces": pieces}
        ranks = [
            take(make(Numbers(40, corrupt=(2, 9, 30)), 8, rank=rank, **options), 20 * pieces)
            for rank in range(world_size)
        ]
        for step, batch in enumerate(whole):
            parts = [rank[step * pieces + piece] for rank in ranks for piece in range(pieces)]
            assert [i for part in parts for i in part["index"]] == batch["index"]
    assert all(len(set(batch["index"])) == 8 for batch in whole)
    assert make(Numbers(12), 6, rank=0, world_size=2).batches_per_epoch == 2
    assert make(Numbers(13), 3).batches_per_epoch == 4


def test_a_batch_may_be_larger_than_the_data() -> None:
    (batch,) = take(make(Numbers(3), 7), 1)
    assert sorted(batch["index"][:3]) == sorted(batch["index"][3:6]) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_samples_are_skipped_counted_and_named_once(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = make(Numbers(6, corrupt=(2, 3)), 3, workers=workers)
    with caplog.at_level(logging.WARNING, logger="cfmvit.data"):
        batches = take(loader, 6)
    indices = [i for batch in batches for i in batch["index"]]
    assert len(indices) == 18
    assert set(indices) == {0, 1, 4, 5}
    assert loader.skipped == 2
    assert set(loader.skipped_paths) == {"photos/2.jpg", "photos/3.jpg"}
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"skipped a corrupt sample: photos/{i}.jpg (truncated)" for i in (2, 3)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_corrupt_samples_is_an_error(workers: int) -> None:
    loader = make(Numbers(5, corrupt=tuple(range(5))), workers=workers)
    with pytest.raises(CorruptSample, match=r"photos/\d.jpg is corrupt .*so are all of 5 samples in a row"):
        take(loader, 1)


def test_other_errors_are_not_hidden() -> None:
    class Broken(Numbers):
        def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        take(make(Broken(3)), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in 0 \.\. world_size - 1, got 2 of 2"),
    ],
)
def test_bad_arguments(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Numbers(5), **options)


def test_an_empty_data_set() -> None:
    with pytest.raises(ValueError, match="dataset must not be empty"):
        make(Numbers(0))


def test_odd_samples_are_counted_and_the_first_named(caplog: pytest.LogCaptureFixture) -> None:
    remarks = Remarks()
    with caplog.at_level(logging.WARNING, logger="cfmvit.data"):
        for number in [*range(25), 3]:
            remarks.note(f"{number}.jpg", ["it is turned", "it is small"])
        remarks.note("sound.jpg", [])
    assert len(remarks) == 25
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:2] == ["0.jpg: it is turned", "0.jpg: it is small"]
    assert messages[20:] == ["further odd samples are counted, not named"]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_corrupt_samples_than_allowed_are_an_error(workers: int) -> None:
    corrupt = (2, 3, 5)
    assert len(take(make(Numbers(8, corrupt), workers=workers, max_skipped=3), 8)) == 8
    words = r"more than max_skipped = 2 corrupt samples: 3 in photos; the first are photos/\d\.jpg \(truncated\); "
    with pytest.raises(ValueError, match=words):
        take(make(Numbers(8, corrupt), workers=workers, max_skipped=2), 8)


def test_corrupt_samples_are_counted_where_they_lie() -> None:
    shards = [
        f"s3://bucket/train-{n:03}.tar:folder/{k}"
        for n, k in ((4, 1), (2, 1), (4, 2), (4, 3), (1, 9), (0, 1))
    ]
    assert by_place([*shards, "photos/a.jpg", "photos/b.jpg"]) == (
        "3 in s3://bucket/train-004.tar, 2 in photos, 1 in s3://bucket/train-002.tar and others in 2 more places"
    )


def test_shards_change_the_order_alone() -> None:
    """Samples of shards come once an epoch, whatever the shards; ranks share each batch."""
    sizes = np.array([3, 17, 1, 19])
    whole = take(make(Numbers(40), 8, sizes=sizes), 10)
    assert sorted(i for batch in whole[:5] for i in batch["index"]) == list(range(40))
    ranks = [take(make(Numbers(40), 8, sizes=sizes, rank=rank, world_size=4), 10) for rank in range(4)]
    for step, batch in enumerate(whole):
        assert [i for rank in ranks for i in rank[step]["index"]] == batch["index"]
