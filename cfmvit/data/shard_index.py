"""The index of a shard: a small file beside it that says where the files of each sample lie, so that no start reads the tar.

It has a header and 32 bytes a sample; it is made once, checked against the size and time of its shard, and read a sample at a
time. It is not mapped into memory: a mapped file that somebody shortens ends the process.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from cfmvit.data.storage import is_url, open_binary, read, state, write
from cfmvit.data.tar_samples import LEFT_OUT, NOWHERE, TEXTS, TarContent, TarSample, tar_content

SUFFIX = ".cfmvit-index"
_MAGIC = b"cfmvit\x00\x01"  # the last byte is the format's version
_HEADER = struct.Struct(f"<8s8s16s3Q{len(LEFT_OUT)}Q")
_RECORD = struct.Struct("<7I")
_CHECKSUM = struct.Struct("<I")  # after the header and after each record
_START = _HEADER.size + _CHECKSUM.size
RECORD_BYTES = _RECORD.size + _CHECKSUM.size


class Head(NamedTuple):
    """What an index says of its shard.

    Attributes:
        place: the index's file.
        samples: how many have an image and a text or a json.
        texts, jsons: how many of them have a text file, and a json.
        left_out: how many of each kind of ``tar_samples.LEFT_OUT``.
        digest: of the names and sizes of the shard's files.
    """

    place: str
    samples: int
    texts: int
    jsons: int
    left_out: tuple[int, ...]
    digest: bytes


def find_index(shard: str, now: bytes) -> Head | bool:
    """Return what the index of a shard says; without one, whether there is one of another state of the shard.

    Args:
        now: the shard's ``state``.

    Raises:
        OSError: the index of a URL can't be kept in the cache.
    """
    stale = False
    for place in _places(shard):
        head = _head(place, now)
        if isinstance(head, Head):
            return head
        stale |= head
    if not is_url(shard):
        return stale
    try:
        content = read(shard + SUFFIX)
    except OSError:
        return stale
    return _head(_write_cached(shard, content), now)


def make_index(shard: str) -> Head:
    """Read the headers of a shard and write its index: beside it, or where that can't be into the user's cache.

    The index of a URL is in the cache, too, where it is read a sample at a time.

    Raises:
        ValueError: the shard is no whole tar.
        OSError: neither place can be written.
    """
    try:
        now = state(shard)
        with open_binary(shard) as file:
            content = index_of(tar_content(file), now)
    except (tarfile.TarError, EOFError, OSError, OverflowError, ValueError) as error:
        raise ValueError(f"{shard} is not a whole tar: {error}") from error
    place = _write(shard, content)
    head = _head(place, now)
    assert isinstance(head, Head), place
    return head


def index_of(content: TarContent, now: bytes) -> bytes:
    """Return the index of what a shard in a state holds."""
    texts = sum(sample.text != NOWHERE for sample in content.samples)
    jsons = sum(sample.json != NOWHERE for sample in content.samples)
    figures = (len(content.samples), texts, jsons, *content.left_out)
    header = _HEADER.pack(_MAGIC, now, content.digest, *figures)
    rows = (_RECORD.pack(s.header, *s.image, *s.text, *s.json) for s in content.samples)
    return b"".join(map(_sealed, (header, *rows)))


def find_sample(head: Head, row: int) -> TarSample:
    """Return where the files of a sample lie.

    Raises:
        ValueError: the index is damaged or gone.
    """
    try:
        with open(head.place, "rb", buffering=0) as file:
            found = os.pread(file.fileno(), RECORD_BYTES, _START + row * RECORD_BYTES)
    except OSError as error:
        raise ValueError(f"data: the index {head.place} can't be read: {error}") from error
    if not _is_sound(found, _RECORD):
        raise ValueError(f"data: the index {head.place} is damaged; remove it, and it is made again")
    header, *numbers = _RECORD.unpack(found[: _RECORD.size])
    image, text, json = zip(numbers[::2], numbers[1::2])
    return TarSample(header, image, text, json)


def describe_captions(head: Head) -> str:
    """Say which files of a shard its captions are in."""
    texts = f".{' or .'.join(TEXTS)}"
    return texts if head.texts == head.samples else ".json" if head.texts == 0 else f"{texts} and .json"


def _head(place: str, now: bytes) -> Head | bool:
    """Return what an index says, or whether there is one that is of no use."""
    try:
        with open(place, "rb", buffering=0) as file:
            start = file.read(_START)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if not _is_sound(start, _HEADER):
        return True
    magic, of, digest, samples, texts, jsons, *left_out = _HEADER.unpack(start[: _HEADER.size])
    if magic != _MAGIC or of != now or size != _START + samples * RECORD_BYTES:
        return True
    return Head(place, samples, texts, jsons, tuple(left_out), digest)


def _sealed(content: bytes) -> bytes:
    return content + _CHECKSUM.pack(zlib.crc32(content))


def _is_sound(sealed: bytes, form: struct.Struct) -> bool:
    return len(sealed) == form.size + _CHECKSUM.size and _sealed(sealed[: form.size]) == sealed


def _write(shard: str, content: bytes) -> str:
    """Write an index; return the place that it is read from."""
    try:
        write(shard + SUFFIX, content)
        if not is_url(shard):
            return shard + SUFFIX
    except OSError:
        pass
    return _write_cached(shard, content)


def _write_cached(shard: str, content: bytes) -> str:
    place = _cached(shard)
    try:
        write(place, content)
    except OSError as error:
        raise OSError(
            f"data: the index of {shard} can't be written to the cache: {error}; "
            "XDG_CACHE_HOME names another folder"
        ) from error
    return place


def _places(shard: str) -> tuple[str, ...]:
    return (_cached(shard),) if is_url(shard) else (shard + SUFFIX, _cached(shard))


def _cached(shard: str) -> str:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cfmvit" / "indexes"
    name = shard if is_url(shard) else os.path.abspath(shard)
    return str(folder / (sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32] + SUFFIX))
