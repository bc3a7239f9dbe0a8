"""Detectors on disk: one folder with the CFM-ViT, the heads, the configuration and the tokenizer."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cfmvit
from cfmvit.detection.config import DetectorConfig
from cfmvit.models import CFMViT
from cfmvit.models.checkpoint import CONFIG, read_pretrained, refuse_foreign, write_pretrained
from cfmvit.models.config import saved_config
from cfmvit.training import load_config


@dataclass
class _Config:
    """Content of a detector's ``config.json``."""

    model: dict[str, Any]
    detector: DetectorConfig


def save_detector(detector: Any, folder: str | os.PathLike[str]) -> None:
    """Write a detector; each weight once, so the frozen tower is stored beside a finetuned one only."""
    config = asdict(_Config(detector.model.config.to_dict(), detector.config))
    write_pretrained(folder, detector.state_dict(), config, detector.model.tokenizer)


def load_detector(cls: Any, folder: str | os.PathLike[str]) -> Any:
    """Read a detector into a new ``cls(model, config)``."""
    saved = read_pretrained(folder)
    if saved.config.keys() != {"model", "detector"}:
        refuse_foreign(saved.folder)
        kind = "a CFM-ViT without a detector" if "vocab_size" in saved.config else "something else"
        raise ValueError(f"from_pretrained: {folder} must hold a detector, got {kind}")
    config = load_config(_Config, saved.folder / CONFIG)
    options = saved_config(config.model, saved.folder)
    return saved.build(lambda: cls(CFMViT(options, saved.tokenizer), config.detector)).eval()


def shipped_checkpoint() -> Path:
    """Return the folder of the detector that comes with the package.

    Raises:
        FileNotFoundError: this installation has none.
    """
    folder = Path(cfmvit.__file__).parent / "checkpoints" / "scenes"
    if not folder.is_dir():
        raise FileNotFoundError(f"from_pretrained: no detector is shipped at {folder}; name a folder")
    return folder
