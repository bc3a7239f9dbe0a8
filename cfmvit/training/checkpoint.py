"""Training state on disk: everything that a resumed run needs to go on bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from cfmvit._io import atomic_write

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"  # of a run that is being overwritten, until that has one of its own
_MARK = b"cfmvit sha256 "


def save_checkpoint(output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write ``checkpoint.pt``: weights, optimizer state, the number of finished steps, and a checksum of it all.

    What an overwritten run had left is removed then: this run has a checkpoint of its own.
    """
    with atomic_write(output / NAME) as file:
        write_checked(file, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
    (output / PREVIOUS).unlink(missing_ok=True)


def load_checkpoint(output: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what ``save_checkpoint`` wrote and return the number of finished steps.

    Raises:
        FileNotFoundError: there is no checkpoint in ``output``.
        ValueError: the file is corrupt, or belongs to another model.
    """
    path = output / NAME
    if not path.is_file():
        kept = output / PREVIOUS
        hint = f"; {kept} is that of the run before, to go on with it rename it" if kept.is_file() else ""
        raise FileNotFoundError(f"resume: no checkpoint at {path}{hint}")
    state = _read(path)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"resume: {path} belongs to another configuration: {error}") from error
    return state["step"]


def write_checked(file: IO[bytes], state: dict[str, Any]) -> None:
    """Write a state and its checksum."""
    hashed = _Hashed(file)
    torch.save(state, cast("IO[bytes]", hashed))
    file.write(_MARK + hashed.digest())


class _Hashed:
    """A file that is written from its beginning to its end, and the hash of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._hash.digest()


def _check_sum(path: Path) -> None:
    """Raise unless the file ends with the hash of all before it. PyTorch reads past that end: a zip may have a tail."""
    size, tail = path.stat().st_size, len(_MARK) + hashlib.sha256().digest_size
    found, left = hashlib.sha256(), size - tail
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found.update(block)
            left -= len(block)
        if left or file.read() != _MARK + found.digest():
            raise ValueError(f"resume: {path} is damaged or cut off: its checksum is another one")


def _read(path: Path) -> dict[str, Any]:
    _check_sum(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise ValueError(
            f"resume: {path} is not a readable checkpoint ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(state, dict) or not {"model", "optimizer", "step"} <= state.keys():
        raise ValueError(f"resume: {path} is not a training checkpoint")
    return state
