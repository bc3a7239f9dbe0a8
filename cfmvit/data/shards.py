"""WebDataset shards with random access: tar headers are read once, members on demand."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cfmvit.data.images import CorruptSample

_IMAGES = ("jpg", "jpeg", "png", "webp")


class Member(NamedTuple):
    """Where one file of a sample lies in its shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """The files of one sample, by extension; the image's is ``image``.

    A file is opened for every read, so samples can be sent to other processes.
    """

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
            CorruptSample: the shard ends before it, or is no longer there.
        """
        offset, size = self.members[extension]
        try:
            with self.shard.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise CorruptSample(f"{self.name}.{extension}", str(error)) from error
        if len(content) < size:
            raise CorruptSample(f"{self.name}.{extension}", "the shard is truncated")
        return content

    def json(self) -> dict[str, Any]:
        """Return the parsed ``.json`` member.

        Raises:
            CorruptSample: it is not a json object.
        """
        try:
            content = json.loads(self.read("json"))
        except ValueError as error:
            raise CorruptSample(f"{self.name}.json", str(error)) from error
        if not isinstance(content, dict):
            raise CorruptSample(f"{self.name}.json", f"must be an object, got {type(content).__name__}")
        return content


def _check_end(shard: Path, end: int) -> None:
    """Python's tarfile takes a cut-off archive for a shorter one; a whole one ends with blocks of zeros."""
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is truncated")


def index_shards(shards: tuple[Path, ...], needed: str) -> list[ShardSample]:
    """List the samples of shards that have an image (jpg, jpeg, png or webp) and a ``needed`` member.

    Raises:
        ValueError: a file that is not a whole tar, or no such sample in any of them.
    """
    samples: list[ShardSample] = []
    for shard in shards:
        found: dict[str, dict[str, Member]] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for entry in tar:
                    if entry.isfile():
                        # As WebDataset has it: the extension begins at the first dot of the file's name.
                        folder, _, name = entry.name.rpartition("/")
                        stem, _, extension = name.partition(".")
                        extension = "image" if extension.lower() in _IMAGES else extension
                        found.setdefault(f"{folder}/{stem}" if folder else stem, {})[extension] = Member(
                            entry.offset_data, entry.size
                        )
                end = tar.offset
            _check_end(shard, end)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"data: {shard} is not a whole tar: {error}") from error
        samples += [
            ShardSample(shard, key, files)
            for key, files in found.items()
            if {"image", needed} <= files.keys()
        ]
    if not samples:
        raise ValueError(
            f"data: no sample with an image and a .{needed} in {len(shards)} shards, the first is {shards[0]}"
        )
    return samples
