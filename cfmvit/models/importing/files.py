"""Checkpoints of other libraries, read from disk: safetensors, pickles, TorchScript, in one file or several."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfmvit._io import parse_json
from cfmvit._require import require

# Averaged weights before those that they are the average of, as timm chooses.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file; of a training checkpoint the model's, without the prefixes that wrappers give.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that can't be read, or holds no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"import: no file at {path}")
    if path.name.endswith(".index.json"):
        return _read_parts(path)
    try:
        content = _read(path)
    except pickle.UnpicklingError as error:  # whose text recommends to run what is in the file
        raise ValueError(
            f"import: {path} can't be read: it is damaged, or holds more than the tensors that torch.save(model.state_dict(), ...) "
            "writes"
        ) from error
    except Exception as error:  # safetensors, pickle and zip each raise their own types
        raise ValueError(f"import: {path} can't be read ({type(error).__name__}: {error})") from error
    return state_dict(content, str(path))


def state_dict(content: Any, origin: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one in a training checkpoint.

    Raises:
        ValueError: there are none.
    """
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        while tensors and any(all(name.startswith(prefix) for name in tensors) for prefix in _PREFIXES):
            tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
        if tensors:
            return tensors
    raise ValueError(f"import: {origin} must hold a state dict, got {_described(content)}")


def read_config(path: Path) -> dict[str, Any]:
    """Return what a json file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no json object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"import: {path.parent} must hold {path.name}, got none")
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"import: {path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"import: {path} must hold an object, got a {type(config).__name__}")
    return config


def find_weights(folder: Path, *stems: str) -> Path:
    """Return the file of weights in a folder: safetensors first, whole before parted, else a pickle.

    Raises:
        FileNotFoundError: there is none.
    """
    endings = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth")
    names = [f"{stem}{ending}" for ending in endings for stem in stems]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"import: {folder} must hold weights, {names[0]} for instance; got none")


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI's are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return require("safetensors.torch", extra="models").load_file(path)
    if is_torchscript(path):
        return torch.jit.load(path, map_location="cpu").state_dict()
    # What MAE's training writes beside the weights is plain, too.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_parts(index: Path) -> dict[str, Tensor]:
    parts = read_config(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise ValueError(f"import: {index} must hold a weight_map of names of files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(parts.values())):
        if Path(name).name != name:
            raise ValueError(f"import: {index} must name files beside it, got {name}")
        tensors |= read_tensors(index.parent / name)
    return tensors


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping without tensors, of {', '.join(map(str, list(content)[:6])) or 'nothing'}"
    return f"a {type(content).__name__}"
