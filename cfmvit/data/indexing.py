"""Making the indexes of shards ahead of a run, or by its processes together."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cfmvit.data.shard_index import Head
from cfmvit.data.shards import indexes
from cfmvit.data.specs import PREFIX, shard_names


@dataclass(frozen=True)
class Indexed:
    """The indexes of shards.

    Attributes:
        shards, samples: how many have an index, and what is in them.
        bytes: of all indexes.
        broken: why the other shards can have none.
    """

    shards: int
    samples: int
    bytes: int
    broken: list[str]


def index_shards(pattern: str) -> Indexed:
    """Make the indexes of shards that are missing or stale, on all cores.

    Args:
        pattern: as ``shards:`` takes it, with that word or without; of a folder, its training and validation shards.

    Raises:
        FileNotFoundError: there are no such shards.
        OSError: an index can't be written anywhere.
    """
    names = _both_splits(pattern.removeprefix(PREFIX))
    found = list(indexes(names))
    heads = [head for head in found if isinstance(head, Head)]
    return Indexed(
        shards=len(heads),
        samples=sum(head.samples for head in heads),
        bytes=sum(os.path.getsize(head.place) for head in heads),
        broken=[reason for reason in found if isinstance(reason, str)],
    )


def share_indexing(spec: str, split: str, rank: int, size: int) -> None:
    """Make the indexes of one process's part of the shards that ``spec`` names, if it names shards.

    Raises:
        FileNotFoundError, OSError: as ``index_shards``. Broken shards are left to whoever opens them.
    """
    if spec.startswith(PREFIX):
        for _ in indexes(shard_names(spec.removeprefix(PREFIX), split)[rank::size]):
            pass


def _both_splits(pattern: str) -> list[str]:
    found: dict[str, None] = {}
    missing: list[FileNotFoundError] = []
    for split in ("train", "val"):
        try:
            found.update(dict.fromkeys(shard_names(pattern, split)))
        except FileNotFoundError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    return list(found)
