"""A checkpoint on disk: tensors as safetensors, what is no tensor as json, and a checksum of each file.

``sha256sum --check SHA256SUMS`` checks one by hand.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cfmvit._io import atomic_dir, parse_json, sync
from cfmvit._require import require

MODEL, OPTIMIZER, STATE, SUMS = "model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"
_FORMAT = 1


@dataclass
class State:
    """All that a run needs to go on.

    Attributes:
        step: steps that are done.
        model: the state dict, on the CPU.
        optimizer: its state, by ``what/parameter``, on the CPU. Rates and the like are the configuration's.
        kind: the optimizer's class.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    kind: str


class DamagedError(ValueError):
    """A file of a checkpoint is not what was written; the message names it."""


def write_state(folder: Path, state: State) -> None:
    """Write a checkpoint to the disk, whole or not at all; when this returns, a power failure no longer harms it.

    Raises:
        OSError: the disk is full, or can't be written to.
    """
    with atomic_dir(folder) as staging:
        for name, tensors in ((MODEL, state.model), (OPTIMIZER, state.optimizer)):
            _write(tensors, staging / name, folder / name)
        about = {"format": _FORMAT, "step": state.step, "optimizer": state.kind}
        (staging / STATE).write_text(json.dumps(about) + "\n", encoding="utf-8")
        lines = [_line(staging, name) for name in (MODEL, OPTIMIZER, STATE)]
        (staging / SUMS).write_bytes("".join(lines).encode())
        sync(staging)
    sync(folder.parent)


def check_state(folder: Path) -> None:
    """Read all files of a checkpoint once.

    Raises:
        DamagedError: one is missing, or is not what was written.
    """
    try:
        written = (folder / SUMS).read_bytes().decode()
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder / SUMS} can't be read: {error}") from error
    found = ""
    for name in (MODEL, OPTIMIZER, STATE):
        if not (folder / name).is_file():
            raise DamagedError(f"{folder / name} is missing")
        line = _line(folder, name)
        if line not in written:
            raise DamagedError(f"{folder / name} is damaged or cut off: {SUMS} has another checksum")
        found += line
    if found != written:
        raise DamagedError(f"{folder / SUMS} is damaged")


def read_state(folder: Path) -> State:
    """Read a checkpoint that ``check_state`` has found whole.

    Raises:
        ValueError: it has a format that this version does not know.
    """
    load = require("safetensors.torch", extra="models").load_file
    about = parse_json((folder / STATE).read_text(encoding="utf-8"))
    if about["format"] != _FORMAT:
        raise ValueError(f"resume: {folder} must have the format {_FORMAT}, got {about['format']!r}")
    return State(about["step"], load(folder / MODEL), load(folder / OPTIMIZER), about["optimizer"])


def _write(tensors: dict[str, Tensor], path: Path, name: Path) -> None:
    save = require("safetensors.torch", extra="models").save_file
    try:
        save(tensors, path)
    except require("safetensors").SafetensorError as error:  # also of a full disk
        raise OSError(f"{name} can't be written: {error}") from error


def _line(folder: Path, name: str) -> str:
    """Return a file's line as ``sha256sum`` writes it."""
    found = hashlib.sha256()
    with (folder / name).open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return f"{found.hexdigest()}  {name}\n"
