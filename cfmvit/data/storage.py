"""Bytes wherever they lie: files of this machine by their path, all else by an fsspec URL and range reads."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, TypeVar

from cfmvit._io import atomic_write
from cfmvit._require import require

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 16  # reading waits for disks and networks, not for this processor
_NEAR = 64 * 1024  # bytes between two ranges that cost less than another request
_READ_ONLY = ("http://", "https://")
_WHEN = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


def is_url(place: str) -> bool:
    """Whether a place is fsspec's: ``s3://bucket/a.tar``, and also ``file:///a.tar``."""
    return "://" in place


def matching(pattern: str) -> list[str]:
    """Return the places that a pattern with wildcards stands for, sorted."""
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    files, path = _opened(pattern)
    with _remote(pattern):
        return sorted(str(files.unstrip_protocol(name)) for name in files.glob(path))


def beside(place: str, name: str) -> str:
    """Return the place of that name in the same folder."""
    return f"{place.rpartition('/')[0]}/{name}" if "/" in place else name


def exists(place: str) -> bool:
    """Tell whether a file is there."""
    if not is_url(place):
        return os.path.isfile(place)
    files, path = _opened(place)
    with _remote(place):
        return bool(files.exists(path))


def state(place: str) -> bytes:
    """Return 8 bytes that change with a file's size or its time (or its ETag, where the storage has one).

    Raises:
        OSError: there is no such file.
    """
    if not is_url(place):
        status = os.stat(place)
        written = f"{status.st_size} {status.st_mtime_ns}"
    else:
        files, path = _opened(place)
        with _remote(place):
            info = files.info(path)
        written = f"{info['size']} {next((info[name] for name in _WHEN if info.get(name)), '')}"
    return sha256(written.encode()).digest()[:8]


def read(place: str) -> bytes:
    """Return a whole file.

    Raises:
        OSError: it can't be read.
    """
    if not is_url(place):
        return Path(place).read_bytes()
    files, path = _opened(place)
    with _remote(place):
        return bytes(files.cat_file(path))


def read_ranges(place: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return the bytes of each (offset, size); ranges that lie near each other are read at once.

    Raises:
        OSError: the file is not there, can't be read, or ends before a range; its server sends no ranges.
    """
    found: dict[tuple[int, int], bytes] = {}
    for first, last, inside in _joined(ranges):
        content = _read_range(place, first, last)
        if len(content) < last - first:
            raise OSError(f"it is truncated: it ends before byte {last}")
        if len(content) > last - first:  # the whole file, for a part of it
            raise OSError(f"the server of {place} must answer requests of ranges of bytes, and does not")
        for offset, size in inside:
            found[offset, size] = content[offset - first : offset - first + size]
    return [found[item] for item in ranges]


def open_binary(place: str) -> IO[bytes]:
    """Open a file for reading from start to end."""
    if not is_url(place):
        return open(place, "rb")
    files, path = _opened(place)
    with _remote(place):
        opened: IO[bytes] = files.open(path, "rb")
    return opened


def write(place: str, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: it can't be written; also where the folder's mode says so and the user may write all the same.
    """
    if not is_url(place):
        if not _may_write(Path(place).parent):
            raise PermissionError(f"{place} can't be written: its folder is read-only")
        with atomic_write(place) as file:
            file.write(content)
        return
    if place.startswith(_READ_ONLY):
        raise PermissionError(f"{place} can't be written: it is a web server's")
    files, path = _opened(place)
    with _remote(place):
        files.pipe_file(path, content)


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Map in order what mostly waits for storage."""
    items = list(items)
    chunk = -(-len(items) // (8 * _THREADS)) or 1
    parts = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [result for part in pool.map(partial(_each, work), parts) for result in part]


def _may_write(folder: Path) -> bool:
    """Tell whether a folder's mode lets anybody write: one that is closed on purpose is left alone by root, too."""
    return not folder.exists() or bool(folder.stat().st_mode & 0o222)


def _each(work: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [work(item) for item in items]


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Return first and last byte of each stretch to read, and the ranges in it."""
    stretches: list[tuple[int, int, list[tuple[int, int]]]] = []
    for offset, size in sorted(ranges):
        if stretches and offset - stretches[-1][1] <= _NEAR:
            first, last, inside = stretches[-1]
            stretches[-1] = (first, max(last, offset + size), [*inside, (offset, size)])
        else:
            stretches.append((offset, offset + size, [(offset, size)]))
    return stretches


def _read_range(place: str, first: int, last: int) -> bytes:
    if not is_url(place):
        with open(place, "rb", buffering=0) as file:
            return os.pread(file.fileno(), last - first, first)
    files, path = _opened(place)
    with _remote(place):
        return bytes(files.cat_file(path, start=first, end=last))


@contextmanager
def _remote(url: str) -> Iterator[None]:
    """Have each storage's own errors, such as aiohttp's, as the OSError that a file of this machine would give."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{url} can't be reached: {type(error).__name__}: {error}") from error


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, fsspec's own cached one, and the path in it."""
    fsspec = require("fsspec", extra="remote")
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:  # fsspec names the package that this kind of URL needs
        raise ImportError(f"cfmvit: {url} can't be read: {error}") from error
