"""A folder is one process's at a time, and says whose."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HELD: set[int] = set()  # descriptors of this process


def _let_go() -> None:
    """Close a forked worker's copies: it outlives a killed run by seconds, and would keep the folder from the next one."""
    for lock in _HELD:
        os.close(lock)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


class HeldError(RuntimeError):
    """Another process holds the lock; the message names it: ``process 4711 on node-3``."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file, which is there as long as it is held; that of a killed process keeps nobody out.

    Raises:
        HeldError: another process holds it, on any machine that sees the file.
    """
    lock = _open(path)
    while not _is(lock, path):  # its last holder removed the file that we had opened
        os.close(lock)
        lock = _open(path)
    _HELD.add(lock)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        _HELD.discard(lock)
        os.close(lock)


def _open(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # for writing: NFS gives no exclusive lock without
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 512, 0).decode(errors="replace")
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise HeldError(holder or "another process") from None
        raise
    return lock


def _is(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
