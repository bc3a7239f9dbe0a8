"""What a cell is made of: data, a pretrained model, a detector. Each lies in a folder named by what it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cfmvit import __version__
from cfmvit._io import clean
from cfmvit.data import open_captions
from cfmvit.data.photographs import PhotographsConfig, make_photographs
from cfmvit.data.scenes import ScenesConfig, make_scenes
from cfmvit.detection import Detector, FinetuneConfig, finetune
from cfmvit.models import CFMViT, create_model
from cfmvit.models.config import model_config
from cfmvit.pretrain import PretrainConfig, pretrain
from cfmvit.pretrain.engine import new_tokenizer
from cfmvit.study.config import Cell
from cfmvit.training.checkpoint import checkpoints
from cfmvit.training.device import choose_device

Made = ScenesConfig | PhotographsConfig


def key_of(*parts: Any) -> str:
    """Return a short name for what ``parts`` hold, which json can write, and the version that works with them."""
    return hashlib.sha256(json.dumps([__version__, *parts], sort_keys=True).encode()).hexdigest()[:12]


class Stages:
    """The stages of a cell. What another cell or another study has made with the same settings is taken as it is, and a stage
    that was broken off goes on from its checkpoint.

    Args:
        root: folder of all stages.
    """

    def __init__(self, cell: Cell, root: Path) -> None:
        self.cell, self._root = cell, root
        self._settings = cell.settings

    @property
    def image_size(self) -> int:
        """Side of a pretraining image."""
        chosen = self._settings.pretrain
        return model_config(chosen.model, **chosen.model_options).image_size

    @property
    def device(self) -> torch.device:
        """Where models are run."""
        return choose_device(self._settings.pretrain.device)

    @cached_property
    def data(self) -> str:
        """What is trained on, as ``cfmvit.data`` names it."""
        return self._made(self._config)

    @cached_property
    def measured(self) -> str:
        """What is measured on, as ``cfmvit.data`` names it."""
        settings = self._settings
        if settings.measured in ("scenes", "photographs"):
            return self._made(getattr(settings, settings.measured))
        return settings.measured or self.data

    @property
    def _config(self) -> Made:
        config: Made = getattr(self._settings, self._settings.data)
        return config

    @property
    def pretraining(self) -> Path:
        """Folder of the pretraining, or of the fresh weights that stand for one."""
        kind = "fresh" if self._settings.control == "no pretraining" else "pretrain"
        return self._root / f"{kind}-{key_of(asdict(self._config), asdict(self._settings.pretrain))}"

    @cached_property
    def model(self) -> CFMViT:
        """The pretrained model."""
        folder, config = self.pretraining, replace(self._settings.pretrain, data=self.data)
        if not (folder / "model").exists():
            if self._settings.control == "no pretraining":
                clean(folder)
                self._fresh(config).save_pretrained(folder / "model")
            else:
                pretrain(config, folder, **_going_on(folder))
        return CFMViT.from_pretrained(folder / "model").to(self.device).eval()

    def _fresh(self, config: PretrainConfig) -> CFMViT:
        """Return a model with fresh weights and the tokenizer that its pretraining would have."""
        captions = open_captions(config.data, image_size=self.image_size)
        tokenizer = new_tokenizer(config, captions)
        torch.manual_seed(config.loop.seed)
        return create_model(config.model, tokenizer=tokenizer, **config.model_options)

    @property
    def _boxes(self) -> tuple[Made, FinetuneConfig]:
        """The data and the configuration of the finetuning: an oracle's with the boxes of novel categories."""
        if self._settings.control != "oracle":
            return self._config, self._settings.finetune
        return replace(self._config, novel_boxes=True), replace(self._settings.finetune, vocabulary="all")

    @property
    def finetuning(self) -> Path:
        """Folder of the finetuning."""
        data, config = self._boxes
        return self._root / f"finetune-{key_of(self.pretraining.name, asdict(data), asdict(config))}"

    @cached_property
    def detector(self) -> Detector:
        """The detector that was finetuned from the model."""
        folder, (data, config) = self.finetuning, self._boxes
        if not (folder / "detector").exists():
            assert self.model is not None  # there before what is made of it
            chosen = replace(config, data=self._made(data), model=str(self.pretraining / "model"))
            finetune(chosen, folder, **_going_on(folder))
        return Detector.from_pretrained(folder / "detector").to(self.device).eval()

    def _made(self, config: Made) -> str:
        make: Callable[[Path, Any], Path] = (
            make_scenes if isinstance(config, ScenesConfig) else make_photographs
        )
        name = "scenes" if isinstance(config, ScenesConfig) else "photographs"
        return f"lvis:{make(self._root / f'{name}-{key_of(asdict(config))}', config)}"


def _going_on(folder: Path) -> dict[str, bool]:
    there = bool(checkpoints(folder))
    return {"resume": there, "overwrite": not there}
