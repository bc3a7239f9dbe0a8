"""Models on disk: ``model.safetensors``, ``config.json`` and ``tokenizer.json`` in one folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cfmvit._io import atomic_dir, parse_json, sync
from cfmvit._require import require
from cfmvit.models.hub import local_folder
from cfmvit.models.tokenizer import Tokenizer

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass
class Saved:
    """What a folder holds."""

    folder: Path
    weights: dict[str, Tensor]
    config: dict[str, Any]
    tokenizer: Tokenizer | None

    def build(self, make: Callable[[], Model]) -> Model:
        """Make a model and load the weights, all of them.

        The model is made without memory first: a configuration may ask for any size, the file at hand has its own.

        Raises:
            ValueError: names or shapes differ from the model's, or a weight is NaN or infinite.
        """
        unsound = [
            name for name, w in self.weights.items() if w.is_floating_point() and not w.isfinite().all()
        ]
        if unsound:
            raise ValueError(
                f"from_pretrained: {self.folder / WEIGHTS} must hold finite weights, got NaN or infinite ones in "
                f"{len(unsound)} of {len(self.weights)} tensors, {unsound[0]} the first"
            )
        with torch.device("meta"):
            wanted = {name: weight.shape for name, weight in make().state_dict().items()}
        given = {name: weight.shape for name, weight in self.weights.items()}
        for name in sorted(wanted.keys() | given.keys()):
            if wanted.get(name) != given.get(name):
                asked, got = (
                    "none" if shape is None else tuple(shape) for shape in (wanted.get(name), given.get(name))
                )
                raise ValueError(
                    f"from_pretrained: {self.folder / WEIGHTS} does not fit its {CONFIG}: {name} must have the shape "
                    f"{asked}, got {got}"
                )
        model = make()
        model.load_state_dict(self.weights)
        return model


def write_pretrained(
    folder: str | os.PathLike[str],
    weights: dict[str, Tensor],
    config: dict[str, Any],
    tokenizer: Tokenizer | None,
) -> None:
    """Write the files into a fresh folder that takes the place of ``folder`` when all are there.

    Raises:
        FileExistsError: ``folder`` is a file, or holds something else than these files.
    """
    _check_replaceable(Path(folder))
    save = require("safetensors.torch", extra="models").save
    with atomic_dir(folder) as staging:
        plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        (staging / WEIGHTS).write_bytes(save(plain))
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(staging / TOKENIZER)
        sync(staging)


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"save_pretrained: {folder} must be a folder, got a file")
    if folder.is_dir() and (
        others := {entry.name for entry in folder.iterdir()} - {WEIGHTS, CONFIG, TOKENIZER}
    ):
        raise FileExistsError(
            f"save_pretrained: {folder} must be new, empty or hold a saved model alone, for it is replaced; got {min(others)}"
        )


def refuse_foreign(path: Path) -> None:
    """Raise an error that says how to import it where ``path`` holds a checkpoint of another library.

    Raises:
        ValueError: it does.
    """
    from cfmvit.models.importing.recognise import hint  # the importers make models, and so import this file

    if found := hint(path):
        raise ValueError(f"from_pretrained: {path} must be a folder that save_pretrained wrote, got {found}")


def read_pretrained(folder: str | os.PathLike[str]) -> Saved:
    """Read a folder written by ``write_pretrained``, or ``hf:org/name``, such a folder on the hub (see ``local_folder``).

    Raises:
        FileNotFoundError: no such folder, or a file is missing in it.
        ValueError: a file that can't be read, or a checkpoint of another library.
    """
    load_file = require("safetensors.torch", extra="models").load_file
    path = local_folder(folder)
    if not (path / WEIGHTS).is_file():  # a run's folder stands for what it made
        path = next(
            (path / name for name in ("detector", "model") if (path / name / WEIGHTS).is_file()), path
        )
    for name in (WEIGHTS, CONFIG):
        if not (path / name).is_file():
            refuse_foreign(path)
            raise FileNotFoundError(
                f"from_pretrained: {path} must be a folder with {WEIGHTS} and {CONFIG}; no {name} there"
            )
    try:
        config = parse_json((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"from_pretrained: {path / CONFIG} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"from_pretrained: {path / CONFIG} must hold an object, got a {type(config).__name__}"
        )
    try:
        weights = load_file(path / WEIGHTS)
    except Exception as error:  # safetensors raises its own type, not derived from a common one
        raise ValueError(f"from_pretrained: {path / WEIGHTS} is corrupt or truncated: {error}") from error
    tokenizer = Tokenizer.from_file(path / TOKENIZER) if (path / TOKENIZER).is_file() else None
    return Saved(path, weights, config, tokenizer)


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 of a module's names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
