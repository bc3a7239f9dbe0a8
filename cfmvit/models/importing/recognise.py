"""Tell a checkpoint of another library, so that an error can say how to import it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cfmvit._io import parse_json
from cfmvit.models.importing.files import read_tensors

_NAMES = {
    "hf": "Hugging Face's",
    "mae": "a masked autoencoder's",
    "open_clip": "open_clip's or OpenAI's",
    "timm": "timm's",
}


def kind_of(path: Path) -> str | None:
    """Return the kind that ``cfmvit import`` takes a folder or a file for; None where it is of no library that is known."""
    if path.is_dir():
        return _kind_of_folder(path)
    if path.suffix not in (".pt", ".pth", ".bin", ".safetensors") or not path.is_file():
        return None
    try:
        return _kind_of_names(read_tensors(path))
    except (ValueError, ImportError):
        return None


def hint(path: Path) -> str:
    """Say whose a checkpoint is and how to import it; empty where it is of no library that is known."""
    kind = kind_of(path)
    if kind is None:
        return ""
    return f"a checkpoint of {_NAMES[kind]}: cfmvit import {kind}:{path} --output DIR makes a CFM-ViT of it"


def _kind_of_folder(folder: Path) -> str | None:
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    if isinstance(config, dict) and "model_type" in config:
        return "hf"
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    return "timm" if isinstance(config, dict) and "architecture" in config else None


def _kind_of_names(names: Iterable[str]) -> str | None:
    found = set(names)
    if {"visual.conv1.weight", "visual.trunk.patch_embed.proj.weight"} & found:
        return "open_clip"
    if any(name.startswith("vision_model.") for name in found):
        return "hf"
    if "patch_embed.proj.weight" in found and "blocks.0.attn.qkv.weight" in found:
        return "mae" if "decoder_pos_embed" in found else "timm"
    return None
