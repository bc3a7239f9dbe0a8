"""Where image-text pairs come from: files of this machine whose captions are known, or shards whose captions lie beside the images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cfmvit.data.fingerprint import fingerprint
from cfmvit.data.images import CorruptSample, log_corrupt, read_sample
from cfmvit.data.shards import Shards, ShardSample, parsed_json
from cfmvit.data.storage import in_threads

_LOG = logging.getLogger(__name__)


class Pair(NamedTuple):
    """An encoded image and its captions, at least one."""

    image: bytes
    captions: list[str]
    key: str


class Pairs(Protocol):
    """Numbered pairs.

    Attributes:
        sizes: int64 (groups,), how many consecutive pairs lie together in a shard.
    """

    sizes: NDArray[np.int64]

    def __len__(self) -> int: ...

    def read(self, index: int) -> Pair:
        """Return a pair, or raise ``CorruptSample``."""
        ...

    def texts(self, indices: Iterable[int]) -> Iterator[str]:
        """Yield the captions of pairs; what can't be read is logged."""
        ...

    def fingerprint(self) -> str:
        """Tell these pairs from others."""
        ...


class FilePairs:
    """Image files and their captions; see ``Pairs``."""

    def __init__(self, paths: list[Path], captions: list[list[str]]) -> None:
        self._paths, self._captions = paths, captions
        self.sizes: NDArray[np.int64] = np.array([len(paths)], np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Pair:
        """Return a pair.

        Raises:
            CorruptSample: the image can't be read.
        """
        path = self._paths[index]
        return Pair(read_sample(path), self._captions[index], str(path))

    def texts(self, indices: Iterable[int]) -> Iterator[str]:
        """Yield the captions of pairs."""
        return (text for index in indices for text in self._captions[index])

    def fingerprint(self) -> str:
        """Tell these pairs from others: names of the images and captions, not the pixels."""
        return fingerprint(zip((path.name for path in self._paths), self._captions))


class ShardPairs:
    """Samples of shards; see ``Pairs``. A caption is a text file, or the json's ``caption``, ``captions`` or ``text``."""

    def __init__(self, shards: Shards) -> None:
        self._shards, self.sizes = shards, shards.sizes

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, index: int) -> Pair:
        """Return a pair.

        Raises:
            CorruptSample: the sample can't be read, or has no caption.
        """
        sample, files = self._shards.read(index, "image", "text", "json")
        return Pair(files.pop("image"), _captions(sample, files), sample.name)

    def texts(self, indices: Iterable[int]) -> Iterator[str]:
        """Yield the captions of pairs; samples that have none are logged."""
        for found in in_threads(self._try_captions, indices):
            if isinstance(found, CorruptSample):
                log_corrupt(found)
            else:
                yield from found

    def fingerprint(self) -> str:
        """Tell these pairs from others: names and sizes of all files, not what is in them."""
        return self._shards.fingerprint()

    def _try_captions(self, index: int) -> list[str] | CorruptSample:
        try:
            return _captions(*self._shards.read(index, "text", "json"))
        except CorruptSample as error:
            return error


def file_pairs(listed: list[tuple[Path, list[Any]]], place: str) -> tuple[FilePairs, str]:
    """Return the images that have a caption, and in words what is left out.

    Args:
        listed: images with their captions as a file has them.
        place: where they were found, for messages.
    """
    written = [text for _, texts in listed for text in texts]
    other = [text for text in written if not isinstance(text, str | None)]
    if other:
        _LOG.warning(
            "dropped %d captions of %s that are no text, the first is %r", len(other), place, other[0]
        )
    kept = [(path, usable(texts)) for path, texts in listed]
    empty = len(written) - len(other) - sum(len(texts) for _, texts in kept)
    if empty:
        _LOG.warning("dropped %d empty captions of %s", empty, place)
    kept = [(path, texts) for path, texts in kept if texts]
    pairs = FilePairs([path for path, _ in kept], [texts for _, texts in kept])
    return pairs, (
        f"{len(kept)} of {len(listed)} images; {sum(len(texts) for _, texts in kept)} captions, "
        f"{empty} empty ones and {len(other)} that are no text left out"
    )


def usable(texts: Iterable[Any]) -> list[str]:
    """Return those that are text and not empty, without white space around."""
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _captions(sample: ShardSample, files: dict[Any, bytes]) -> list[str]:
    if "text" in files:
        found: Any = [files["text"].decode("utf-8", "replace")]
    else:
        content = parsed_json(sample, files["json"])
        found = next((content[key] for key in ("caption", "captions", "text") if key in content), None)
        found = found if isinstance(found, list) else [found]
    texts = usable(found)
    if not texts:
        raise CorruptSample(sample.name, f"it has no caption, got {found!r:.60}")
    return texts
