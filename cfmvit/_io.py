"""Files are written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# Names that nobody else gives: ``clean`` removes them from folders of people's own.
_PART, _OLD = ".cfmvit-part", ".cfmvit-old"
_ASKING = threading.Lock()
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and move it there when the block ends without an error.

    Args:
        path: the file to create or replace; its folder is made when missing.
        mode: ``"wb"`` or ``"w"`` (UTF-8).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_PART)
    try:
        os.fchmod(handle, 0o666 & ~_umask())
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        _name_disk_error(error, target)
        raise


@contextmanager
def atomic_dir(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block ends without an error.

    An existing folder at ``path`` is replaced, on Linux in one step, so that there always is one.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=_PART))
    try:
        staging.chmod(0o777 & ~_umask())
        yield staging
        if not target.exists():
            os.replace(staging, target)
        elif _exchange(staging, target):
            shutil.rmtree(staging)
        else:
            _replace(staging, target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        _name_disk_error(error, target)
        raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Name the file in the error of a full disk, which the system leaves out."""
    try:
        yield
    except OSError as error:
        _name_disk_error(error, path)
        raise


def sync(folder: Path) -> None:
    """Have a folder's files, and what they are called, on the disk before anything that follows."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def parse_json(text: str | bytes) -> Any:
    """Return what a json text holds.

    Raises:
        ValueError: it is no json, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def clean(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder, and bring back what they had put aside.

    Only for a folder in which nothing else writes.
    """
    for retired in folder.glob(f".*{_OLD}"):
        for kept in retired.iterdir():
            if not (folder / kept.name).exists():
                os.replace(kept, folder / kept.name)
        shutil.rmtree(retired)
    for part in folder.glob(f".*{_PART}"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step (Linux's renameat2); False where the system has no such step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _replace(staging: Path, target: Path) -> None:
    """Replace a folder in two steps; ``clean`` repairs what a kill between them leaves."""
    retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=_OLD))
    try:
        os.replace(target, retired / target.name)
        os.replace(staging, target)
    except BaseException:
        if not target.exists():
            os.replace(retired / target.name, target)
        raise
    finally:
        shutil.rmtree(retired)


def _name_disk_error(error: BaseException, path: Path) -> None:
    """Raise an error of the disk anew with the path, which the system leaves out; do nothing about others."""
    if isinstance(error, OSError) and error.errno in _DISK and error.filename is None:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _umask() -> int:
    with _ASKING:  # which sets it: two threads at once would leave it at 0
        current = os.umask(0)
        os.umask(current)
    return current
