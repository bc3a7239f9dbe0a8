"""WebDataset shards with random access: where the files of a sample lie is known from indexes, its content is read on demand."""

from __future__ import annotations

import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfmvit._io import parse_json
from cfmvit.data.fingerprint import fingerprint
from cfmvit.data.images import CorruptSample
from cfmvit.data.parallel import in_parallel
from cfmvit.data.shard_index import Head, describe_captions, find_index, find_sample, make_index
from cfmvit.data.storage import in_threads, is_url, read_ranges, state
from cfmvit.data.tar_samples import BLOCK, LEFT_OUT, TEXTS, Place, key_of
from cfmvit.progress import progress

_LOG = logging.getLogger(__name__)
_MANY = 32  # shards whose indexing takes so long that its progress is shown
_NAMED = 3

BrokenShards = Literal["error", "skip"]
Kind = Literal["image", "text", "json"]


class Member(NamedTuple):
    """Where one file of a sample lies in its shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """The files of one sample, by kind.

    A file is opened for every read, so samples can be sent to other processes.
    """

    shard: str
    key: str
    members: dict[Kind, Member]

    @property
    def name(self) -> str:
        """Path of the sample, for messages."""
        return f"{self.shard}:{self.key}"

    def read(self, kind: Kind) -> bytes:
        """Return the content of one member.

        Raises:
            CorruptSample: the shard ends before it, or is no longer there.
        """
        try:
            return read_ranges(self.shard, [self.members[kind]])[0]
        except OSError as error:
            raise CorruptSample(f"{self.name}.{kind}", str(error)) from error


class Shards:
    """The samples of many shards, numbered through; each has an image and a text or a json.

    Nothing is kept of a sample; of a shard, what its index says of it as a whole.

    Attributes:
        sizes: int64 (number of shards,), samples of each.
    """

    def __init__(self, names: Sequence[str], heads: Sequence[Head]) -> None:
        self._names, self._heads = list(names), list(heads)
        self.sizes: NDArray[np.int64] = np.array([head.samples for head in heads], np.int64)
        self._ends = self.sizes.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def fingerprint(self) -> str:
        """Tell these samples from others: the names and sizes of all files, not what is in them."""
        digest = fingerprint((head.samples, head.digest) for head in self._heads)
        return f"{len(self)} samples, {digest.partition(', ')[2]}"

    def read(self, index: int, *kinds: Kind) -> tuple[ShardSample, dict[Kind, bytes]]:
        """Return a sample and the content of those of its files that are of the ``kinds``.

        Files that lie side by side are read at once.

        Raises:
            CorruptSample: the shard is no longer there, ends before them, or is another.
            ValueError: the index is damaged or gone.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[number] - self.sizes[number])
        shard, found = self._names[number], find_sample(self._heads[number], row)
        places: dict[Kind, Place] = {"image": found.image, "text": found.text, "json": found.json}
        members = {kind: Member(first * BLOCK, size) for kind, (first, size) in places.items() if first}
        header = Member(found.header * BLOCK, members["image"].offset - found.header * BLOCK)
        wanted = [kind for kind in kinds if kind in members]
        try:
            first, *contents = read_ranges(shard, [header, *(members[kind] for kind in wanted)])
            sample = ShardSample(shard, key_of(first), members)
        except (OSError, tarfile.TarError) as error:
            raise CorruptSample(f"{shard}:sample {row}", str(error)) from error
        return sample, dict(zip(wanted, contents, strict=True))


def parsed_json(sample: ShardSample, content: bytes) -> dict[str, Any]:
    """Return the parsed json of a sample.

    Raises:
        CorruptSample: it is not a json object.
    """
    try:
        found = parse_json(content)
    except ValueError as error:
        raise CorruptSample(f"{sample.name}.json", str(error)) from error
    if not isinstance(found, dict):
        raise CorruptSample(f"{sample.name}.json", f"must be an object, got {type(found).__name__}")
    return found


def open_shards(names: Sequence[str], purpose: str, broken: BrokenShards, max_skipped: int) -> Shards:
    """Open shards by their indexes; those without one get it first, on all cores.

    What is left out of them is counted in the log.

    Args:
        purpose: ``"captions"``, of samples with an image and a text or a json, or ``"detection"``, of those with a json.
        broken: a shard that is missing, cut off, compressed, no tar, or without such a sample is an ``"error"``, or logged,
            counted and left out (``"skip"``).
        max_skipped: how many are left out.

    Raises:
        ValueError: a broken shard, or more of them than are left out, no such sample in any of them, or shards that differ in what their captions are in.
        OSError: an index can't be written anywhere.
    """
    wanted = f"a .{' or .'.join((*TEXTS, 'json'))}" if purpose == "captions" else "a .json"
    found: dict[str, Head] = {}
    reasons: dict[str, str] = {}
    for name, head in zip(names, indexes(names), strict=True):
        if isinstance(head, str):
            reasons[name] = head
        elif (head.samples if purpose == "captions" else head.jsons) == 0:
            reasons[name] = f"{name} has no sample with an image and {wanted}"
        else:
            found[name] = head
    if reasons and broken == "error":
        others = f"; so are {len(reasons) - 1} others of {len(names)} shards" if len(reasons) > 1 else ""
        raise ValueError(f"data: {next(iter(reasons.values()))}{others}")
    first = list(reasons.values())[:_NAMED]
    if len(reasons) > max_skipped:
        raise ValueError(
            f"data: more than max_skipped = {max_skipped} broken shards, {len(reasons)} of {len(names)}; the first are "
            + "; ".join(first)
        )
    for reason in first:
        _LOG.warning("skipped the broken shard: %s", reason)
    left_out = Counter({"shards that are broken": len(reasons)})
    for head in found.values():
        left_out.update(dict(zip(LEFT_OUT, head.left_out, strict=True)))
    for what, count in left_out.items():
        if count:
            _LOG.warning("left out %d %s, of %d shards", count, what, len(names))
    if not found:
        raise ValueError(
            f"data: no sample with an image and {wanted} in {len(names)} shards, the first is {names[0]}"
        )
    if purpose == "captions":
        _check_alike(found)
    return Shards(list(found), list(found.values()))


def indexes(names: Sequence[str]) -> Iterator[Head | str]:
    """Yield what the index of each shard says, or why there can be none; those that are missing or stale are made.

    Raises:
        OSError: an index can't be written anywhere.
    """
    found = in_threads(_found, names)
    missing = [name for name, head in zip(names, found) if isinstance(head, bool)]
    stale = sum(head is True for head in found)
    if stale:
        _LOG.warning("%d of %d shards have changed: their indexes are made again", stale, len(names))
    made = dict(zip(missing, _made(missing)))
    for name, head in zip(names, found):
        yield made[name] if isinstance(head, bool) else head


def _made(names: list[str]) -> list[Head | str]:
    if any(map(is_url, names)):
        return in_threads(_try_make, names)
    if len(names) < _MANY:
        return list(in_parallel(_try_make, names, chunk=1))
    made = []
    with progress(len(names), desc="index", unit="shard") as bar:
        for head in in_parallel(_try_make, names, chunk=1):
            made.append(head)
            bar.update()
    return made


def _try_make(name: str) -> Head | str:
    try:
        return make_index(name)
    except ValueError as error:
        return str(error)


def _found(name: str) -> Head | bool | str:
    try:
        now = state(name)
    except OSError as error:
        return f"{name} is missing: {error}"
    return find_index(name, now)


def _check_alike(found: dict[str, Head]) -> None:
    """Refuse shards of which some have their captions in texts alone and others in json alone: they are of two data sets."""
    in_texts = next((name for name, head in found.items() if head.texts == head.samples), None)
    in_json = next((name for name, head in found.items() if head.texts == 0), None)
    if in_texts is not None and in_json is not None:
        raise ValueError(
            f"data: shards must have their captions in the same files, but {in_texts} has them in "
            f"{describe_captions(found[in_texts])} and {in_json} in {describe_captions(found[in_json])}"
        )
