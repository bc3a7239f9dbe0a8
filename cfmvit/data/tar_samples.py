"""The samples of a WebDataset shard: which files each has, and where they lie in the tar."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from hashlib import sha256
from typing import IO

from cfmvit.data.images import MOST_BYTES

BLOCK = tarfile.BLOCKSIZE
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("txt", "caption")  # the first one is taken
LEFT_OUT = (
    "samples without an image",
    f"samples without .{' or .'.join((*TEXTS, 'json'))}",
    f"members that are sparse or claim more than {MOST_BYTES >> 20} MiB",
    "files that come twice in a sample; the first is taken",
)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MOST_BLOCKS = 2**32

Place = tuple[int, int]  # number of the first block, bytes; (0, 0) of a file that is not there
NOWHERE: Place = (0, 0)


@dataclass
class TarSample:
    """One sample.

    Attributes:
        header: number of the block at which the image's entry begins, where its name is written.
    """

    header: int = 0
    image: Place = NOWHERE
    text: Place = NOWHERE
    json: Place = NOWHERE
    extensions: set[str] = field(default_factory=set)


@dataclass
class TarContent:
    """What a shard holds.

    Attributes:
        samples: those with an image and a text or json, in the order of the tar.
        left_out: how many there were of each kind of ``LEFT_OUT``.
        digest: 16 bytes that tell the names and sizes of the files from others.
    """

    samples: list[TarSample]
    left_out: list[int]
    digest: bytes


def tar_content(file: IO[bytes]) -> TarContent:
    """Read the headers of a tar.

    As WebDataset has it, a sample is all files of one name up to its first dot. Extensions count in lower case.

    Raises:
        tarfile.TarError, OSError: it is no plain tar, or is cut off.
    """
    _check_plain(file)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    found: dict[str, TarSample] = {}
    names, left_out = sha256(), [0] * len(LEFT_OUT)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            if entry.issparse() or entry.size > MOST_BYTES:
                left_out[2] += 1
                continue
            if not entry.isfile():
                continue
            if entry.offset_data + entry.size > size:
                raise tarfile.ReadError("it is truncated")
            if entry.offset_data >= _MOST_BLOCKS * BLOCK:
                raise tarfile.ReadError("it is larger than 2 TiB")
            names.update(f"{entry.name} {entry.size}\n".encode("utf-8", "surrogateescape"))
            left_out[3] += not _add(found, entry)
        end = tar.offset
    # Python's tarfile takes a cut-off archive for a shorter one; a whole one ends with blocks of zeros.
    file.seek(end)
    if file.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError("it is truncated")
    samples = []
    for sample in found.values():
        if sample.image == NOWHERE:
            left_out[0] += 1
        elif sample.text == NOWHERE and sample.json == NOWHERE:
            left_out[1] += 1
        else:
            samples.append(sample)
    return TarContent(samples, left_out, names.digest()[:16])


def key_of(header: bytes) -> str:
    """Return the key of the sample whose entry begins with these blocks.

    Raises:
        tarfile.TarError: they are no header.
    """
    with tarfile.open(fileobj=io.BytesIO(header), mode="r:") as tar:
        entry = tar.next()
    if entry is None:
        raise tarfile.ReadError("there is no header of a file")
    return _key_and_extension(entry.name)[0]


def _add(found: dict[str, TarSample], entry: tarfile.TarInfo) -> bool:
    """Add a file to its sample; False where that has one of the kind."""
    key, extension = _key_and_extension(entry.name)
    sample = found.setdefault(key, TarSample())
    kind = "image" if extension in IMAGES else extension
    if kind in sample.extensions:
        return False
    sample.extensions.add(kind)
    place = (entry.offset_data // BLOCK, entry.size)
    if kind == "image":
        sample.image, sample.header = place, entry.offset // BLOCK
    elif kind == "json":
        sample.json = place
    elif kind == TEXTS[0] or (kind in TEXTS and sample.text == NOWHERE):
        sample.text = place
    return True


def _key_and_extension(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _check_plain(file: IO[bytes]) -> None:
    start = file.read(6)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise tarfile.ReadError(
                f"it is compressed by {name}; unpack it to a plain .tar, whose members can be read alone"
            )
