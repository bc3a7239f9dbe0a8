"""WebDataset shards with random access: tar headers are read once, members on demand."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfmvit.data.images import CorruptSample


@dataclass(frozen=True)
class Member:
    """Where one file of a sample lies."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """The files of one sample, by extension."""

    shard: Path
    key: str
    members: dict[str, Member]

    @property
    def name(self) -> str:
        """Path of the sample, for messages."""
        return f"{self.shard}:{self.key}"

    def read(self, extension: str) -> bytes:
        """Return the content of one member.

        Raises:
            CorruptSample: the shard ends before it.
        """
        member = self.members[extension]
        with self.shard.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
        if len(content) < member.size:
            raise CorruptSample(f"{self.name}.{extension}", "the shard is truncated")
        return content

    def json(self) -> dict[str, Any]:
        """Return the parsed ``.json`` member.

        Raises:
            CorruptSample: it is not json.
        """
        try:
            return json.loads(self.read("json"))
        except ValueError as error:
            raise CorruptSample(f"{self.name}.json", str(error)) from error


def index_shards(shards: tuple[Path, ...], needed: str) -> list[ShardSample]:
    """List the samples of shards that have an image (``jpg``, ``jpeg`` or ``png``) and a ``needed`` member.

    Raises:
        ValueError: a file that is not a tar, or no such sample in any of them.
    """
    samples: list[ShardSample] = []
    for shard in shards:
        found: dict[str, dict[str, Member]] = {}
        try:
            with tarfile.open(shard) as tar:
                for entry in tar:
                    if entry.isfile():
                        key, _, extension = entry.name.partition(".")
                        extension = "jpg" if extension in ("jpeg", "png") else extension
                        found.setdefault(key, {})[extension] = Member(entry.offset_data, entry.size)
        except (tarfile.TarError, EOFError) as error:
            if not found:
                raise ValueError(f"data: {shard} is not a readable tar: {error}") from error
        samples += [ShardSample(shard, key, files) for key, files in found.items() if {"jpg", needed} <= files.keys()]
    if not samples:
        raise ValueError(f"data: no sample with an image and a .{needed} in {len(shards)} shards, the first is {shards[0]}")
    return samples
