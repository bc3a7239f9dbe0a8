"""WebDataset shards with random access: tar headers are read once, members on demand."""

from __future__ import annotations

import logging
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cfmvit._io import parse_json
from cfmvit.data.images import MOST_BYTES, CorruptSample

_LOG = logging.getLogger(__name__)
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

BrokenShards = Literal["error", "skip"]


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
            content = parse_json(self.read("json"))
        except ValueError as error:
            raise CorruptSample(f"{self.name}.json", str(error)) from error
        if not isinstance(content, dict):
            raise CorruptSample(f"{self.name}.json", f"must be an object, got {type(content).__name__}")
        return content


def index_shards(
    shards: tuple[Path, ...], needed: Sequence[str], broken: BrokenShards = "error"
) -> list[ShardSample]:
    """List the samples of shards that have an image and a member of one of the ``needed`` extensions.

    As WebDataset has it, a sample is all files of one name up to its first dot. Extensions count in lower case. What is left
    out is counted in the log.

    Args:
        broken: a shard that is empty, cut off, compressed or no tar is an ``"error"``, or logged, counted and left out
            (``"skip"``).

    Raises:
        ValueError: a broken shard, or no such sample in any of them.
    """
    samples: list[ShardSample] = []
    left_out: Counter[str] = Counter()
    for shard in shards:
        try:
            found = _members(shard, left_out)
        except (tarfile.TarError, EOFError, OSError) as error:
            if broken == "error":
                raise ValueError(f"data: {shard} is not a whole tar: {error}") from error
            _LOG.warning("skipped the broken shard %s: %s", shard, error)
            left_out["shards that are broken"] += 1
            continue
        for key, files in found.items():
            if "image" not in files:
                left_out["samples without an image"] += 1
            elif not any(extension in files for extension in needed):
                left_out[f"samples without .{' or .'.join(needed)}"] += 1
            else:
                samples.append(ShardSample(shard, key, files))
    for what, count in left_out.items():
        _LOG.warning("left out %d %s, of %d shards", count, what, len(shards))
    if not samples:
        raise ValueError(
            f"data: no sample with an image and a .{' or .'.join(needed)} in {len(shards)} shards, the first is {shards[0]}"
        )
    return samples


def _members(shard: Path, left_out: Counter[str]) -> dict[str, dict[str, Member]]:
    """Return the files of each sample of a shard."""
    with shard.open("rb") as file:
        start = file.read(6)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise tarfile.ReadError(
                f"it is compressed by {name}; unpack it to a plain .tar, whose members can be read alone"
            )
    found: dict[str, dict[str, Member]] = {}
    size = shard.stat().st_size
    with tarfile.open(shard, "r:") as tar:
        for entry in tar:
            if entry.issparse() or entry.size > MOST_BYTES:
                left_out[f"members that are sparse or claim more than {MOST_BYTES >> 20} MiB"] += 1
                continue
            if not entry.isfile():
                continue
            if entry.offset_data + entry.size > size:
                raise tarfile.ReadError("it is truncated")
            folder, _, name = entry.name.rpartition("/")
            stem, _, extension = name.partition(".")
            extension = extension.lower()
            extension = "image" if extension in _IMAGES else extension
            files = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
            if extension in files:
                left_out["files that come twice in a sample; the first is taken"] += 1
            else:
                files[extension] = Member(entry.offset_data, entry.size)
        end = tar.offset
    # Python's tarfile takes a cut-off archive for a shorter one; a whole one ends with blocks of zeros.
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is truncated")
    return found
