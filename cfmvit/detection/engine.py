"""Finetune a detector on the boxes of base categories."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cfmvit.data import SeededLoader, collate_detection, open_detection
from cfmvit.data.categories import VocabularyRule
from cfmvit.data.detection import DetectionDataset, SizeMismatch
from cfmvit.data.images import Orientation
from cfmvit.data.indexing import share_indexing
from cfmvit.data.shards import BrokenShards
from cfmvit.data.skipped import MAX_SKIPPED
from cfmvit.detection.config import DetectorConfig
from cfmvit.detection.detector import Detector
from cfmvit.detection.vocabulary import clean_labels
from cfmvit.models import CFMViT
from cfmvit.models.blocks import checkpoint_activations
from cfmvit.training import (
    LoopConfig,
    MeanGradients,
    World,
    fit,
    format_config,
    join,
    param_groups,
    warmup_steps,
)
from cfmvit.training.field_ranges import below_one, check, fraction, not_negative, positive
from cfmvit.training.gradients import data_parallel
from cfmvit.training.run_folder import run_folder, settled, start_run
from cfmvit.training.world import quiet

_DETECTOR = "detector"


@dataclass
class FinetuneOptim:
    """SGD as in the paper's sources, or AdamW, which small runs want; steps at 80, 90 and 95 % of the run.

    Attributes:
        backbone_lr_ratio: learning rate of the image tower relative to the rest; at 0 it stays as it is, without a backward pass.
        momentum: of SGD, and the first beta of AdamW.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    backbone_lr_ratio: float = 0.6
    warmup: int = 1000
    milestones: tuple[float, ...] = (0.8, 0.9, 0.95)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        positive("optim.", self, "lr", "gamma")
        not_negative("optim.", self, "weight_decay", "backbone_lr_ratio", "warmup")
        below_one("optim.", self, "momentum")
        inside = all(0 <= part <= 1 for part in self.milestones)
        check("optim.milestones", self.milestones, inside, "be fractions of the run, between 0 and 1")


@dataclass
class FinetuneConfig:
    """Everything that defines a finetuning run, except where it is written.

    Attributes:
        model: folder of a CFM-ViT, pretrained or imported, or ``hf:org/name``.
        data: ``coco:DIR``, ``lvis:DIR``, ``shards:GLOB`` or ``annotations.json@image_folder``.
        augment: large-scale jitter by ``jitter_scale``, and mirroring where ``flip``.
        repeat_threshold: share of the images below which a category's images are repeated (``data.repeat_factors``), such as
            LVIS's 0.001; none are by default.
        checkpoint_activations: compute each block of the image tower again in the backward pass rather than keep what is in it.
        vocabulary, negatives, size_mismatch, orientation, broken_shards: as ``cfmvit.data.open_detection`` takes them.
        max_skipped: how many corrupt samples a process passes over, and how many broken shards.
        device: ``auto`` takes a GPU when there is one.
    """

    model: str = ""
    data: str = ""
    batch_size: int = 128
    workers: int = 0
    augment: bool = True
    jitter_scale: tuple[float, float] = (0.1, 2.0)
    flip: bool = True
    repeat_threshold: float | None = None
    checkpoint_activations: bool = False
    vocabulary: VocabularyRule = "auto"
    negatives: bool = False
    size_mismatch: SizeMismatch = "scale"
    orientation: Orientation = "auto"
    broken_shards: BrokenShards = "error"
    max_skipped: int = MAX_SKIPPED
    device: str = "auto"
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=11_250, precision="auto", save_every=1000)
    )

    def __post_init__(self) -> None:
        positive("", self, "batch_size")
        not_negative("", self, "workers", "max_skipped")
        if self.repeat_threshold is not None:
            positive("", self, "repeat_threshold")
            fraction("", self, "repeat_threshold")


def finetune(
    config: FinetuneConfig, output: Path, *, resume: bool = False, overwrite: bool = False
) -> Detector:
    """Finetune a detector, in one process or in those that ``torchrun`` has started; boxes of novel categories are never read.

    Writes into ``output``: ``config.json``, ``metrics.jsonl``, TensorBoard events, ``checkpoints/`` and, at the end,
    the detector as ``detector/``.

    Args:
        resume: go on from the newest whole checkpoint; on the CPU, with the same number of threads, the weights become bit for
            bit those of a run that was never interrupted.
        overwrite: begin anew where ``output`` already holds a run; what that left is kept until this one can replace it.

    Raises:
        ValueError, FileNotFoundError: a bad configuration, or a model or data that can't be opened.
        FileExistsError: ``output`` holds a run, and neither ``resume`` nor ``overwrite``.
        RuntimeError: another run is going on in ``output``, or a process of this one is missing.
        NonFiniteLossError: the loss became NaN or infinite.
        OSError: the disk is full; the last good checkpoint is there.
    """
    for name in ("model", "data"):
        if not getattr(config, name):
            raise ValueError(f"finetune: {name} must be given; see cfmvit finetune --help")
    with (
        join(config.device, config.loop.timeout) as world,
        run_folder(output, world, resume=resume, overwrite=overwrite, product=_DETECTOR),
    ):
        return _finetune(config, output, resume, world)


def _finetune(config: FinetuneConfig, output: Path, resume: bool, world: World) -> Detector:
    with world.together():
        share_indexing(config.data, "train", world.rank, world.size)
    with world.together(), quiet(world):
        config = settled(config, output, world, resume=resume)
        dataset = _open(config)
        without_masks = config.detector.heads.mask and not dataset.masks
        if without_masks:
            heads = replace(config.detector.heads, mask=False)
            config = replace(config, detector=replace(config.detector, heads=heads))
        print(format_config(config))
        print(f"data: {dataset.summary}")
        if without_masks:
            print("data: no object has a segmentation, so the detector has no mask head")
        trained = _Trained(config, dataset, world)
        optimizer = make_optimizer(trained.detector, config.optim)
    optim, steps, detector = config.optim, config.loop.steps, trained.detector
    loader = SeededLoader(
        dataset,
        config.batch_size,
        seed=config.loop.seed,
        workers=config.workers,
        collate=collate_detection,
        rank=world.rank,
        world_size=world.size,
        pieces=config.loop.accumulate,
        repeats=None if config.repeat_threshold is None else dataset.repeat_factors(config.repeat_threshold),
        max_skipped=config.max_skipped,
    )
    start = start_run(config, output, detector, optimizer, dataset.fingerprint(), world, resume=resume)
    trained.encode_labels()  # by the weights of a resumed checkpoint
    fit(
        model=detector,
        gradients=MeanGradients(data_parallel(trained, world, some_unused=True), world),
        optimizer=optimizer,
        schedule=warmup_steps(optim.warmup, [round(part * steps) for part in optim.milestones], optim.gamma),
        loader=loader,
        config=config.loop,
        output=output,
        world=world,
        start=start,
        name="finetune",
    )
    with world.together():
        if world.main:
            detector.eval().save_pretrained(output / _DETECTOR)
            print(f"finetune: the detector is in {output / _DETECTOR}")
    return detector


class _Trained(nn.Module):
    """A detector and the text matrix of its base categories, as one module whose forward pass gives the losses."""

    def __init__(self, config: FinetuneConfig, dataset: DetectionDataset, world: World) -> None:
        super().__init__()
        base = [number for number, category in enumerate(dataset.categories) if not category.novel]
        self._labels = clean_labels([dataset.categories[number].name for number in base])
        self._world = world
        self.detector = Detector(
            CFMViT.from_pretrained(config.model), replace(config.detector, base_labels=self._labels)
        ).to(world.device)
        if self.detector.visual is not None:
            self.detector.visual.requires_grad_(config.optim.backbone_lr_ratio > 0)
            if config.checkpoint_activations:
                checkpoint_activations(self.detector.visual)
        self.encode_labels()  # so that labels are refused before anything is written
        # Row of each category of the data set among the base ones; -1 for novel ones, which the losses refuse.
        self._rows = torch.full((len(dataset.categories),), -1)
        self._rows[base] = torch.arange(len(base))

    def encode_labels(self) -> None:
        """Make the text matrix, by the weights as they are now."""
        self._text = self.detector.vocabulary(self._labels).embeddings

    def forward(self, batch: dict[str, Any], generators: list[torch.Generator]) -> dict[str, Tensor]:
        """Return the losses of a batch; see ``Detector.losses``."""
        labels = [self._rows[label] for label in batch["labels"]]
        return self.detector.losses({**batch, "labels": labels}, self._text, generators, self._world)


def _open(config: FinetuneConfig) -> DetectionDataset:
    return open_detection(
        config.data,
        split="train",
        base_only=True,
        image_size=config.detector.image_size,
        augment=config.augment,
        jitter_scale=config.jitter_scale,
        flip=config.flip,
        vocabulary=config.vocabulary,
        negatives=config.negatives,
        size_mismatch=config.size_mismatch,
        orientation=config.orientation,
        broken_shards=config.broken_shards,
        max_skipped=config.max_skipped,
    )


def make_optimizer(detector: Detector, optim: FinetuneOptim) -> torch.optim.Optimizer:
    """Return the optimizer; the image tower has its own learning rate and no weight decay."""

    def in_tower(name: str) -> bool:
        return name.startswith("visual.")

    groups = param_groups(
        detector,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        lr_scale=lambda name: optim.backbone_lr_ratio if in_tower(name) else 1.0,
        no_decay=lambda name, parameter: in_tower(name),
    )
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, betas=(optim.momentum, 0.999))
    return torch.optim.SGD(groups, momentum=optim.momentum)
