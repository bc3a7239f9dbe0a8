"""Configuration of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cfmvit.data.shards import BrokenShards
from cfmvit.data.skipped import MAX_SKIPPED
from cfmvit.training import LoopConfig
from cfmvit.training.field_ranges import below_one, check, not_negative, positive

VOCAB_SIZE = 32_000
PROTOCOLS = Path(__file__).parent / "protocols"  # the configurations that the package brings


@dataclass
class OptimConfig:
    """AdamW and its schedule; the paper's values where it states them (section 4.1)."""

    lr: float = 5e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    warmup: int = 10_000
    decay: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        positive("optim.", self, "lr")
        not_negative("optim.", self, "weight_decay", "warmup")
        below_one("optim.", self, "beta1", "beta2")


@dataclass
class PretrainConfig:
    """Everything that defines a pretraining run, except where it is written.

    Attributes:
        data: ``coco:DIR``, ``lvis:DIR``, ``shards:GLOB``, ``captions.json@image_folder``, ``pairs.csv`` or ``pairs.tsv``.
        model: name for ``create_model``; or the folder of a model to start from, pretrained or imported, or ``hf:org/name``.
        model_options: overrides of its configuration.
        tokenizer: path of a ``tokenizer.json``; by default that of a model to start from, else one is learnt from the captions.
        vocab_size: ids that a learnt tokenizer has at most, 32,000 by default.
        crop_scale: range of the area kept by the random resized crop.
        flip: mirror half of the images, where ``augment``. Captions that tell left from right want it off.
        broken_shards: as ``cfmvit.data.open_captions`` takes it.
        max_skipped: how many corrupt samples a process passes over, and how many broken shards.
        checkpoint_activations: compute each block again in the backward pass rather than keep what is in it.
        sharding: "fsdp" leaves to each of several processes a part of weights, gradients and optimizer state, for models that a
            device can't hold whole with all three; see ``training.sharding``.
        eval_every: steps between evaluations on held-out data, see ``pretrain.held_out``; none by default.
        eval_data: the held-out data, in the forms of ``data``; by default the ``val`` split beside ``data``.
        eval_images: how many of its images are taken at most, the first ones.
        device_tflops: peak TFLOP/s of one device in the run's precision, for ``mfu``; that of a known GPU by default.
        device: ``auto`` takes a GPU when there is one.
    """

    data: str = ""
    model: str = "cfm_vit_b16"
    model_options: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    vocab_size: int | None = None
    batch_size: int = 256
    workers: int = 0
    augment: bool = True
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    broken_shards: BrokenShards = "error"
    max_skipped: int = MAX_SKIPPED
    reconstruction_weight: float = 2.0
    checkpoint_activations: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    eval_every: int | None = None
    eval_data: str | None = None
    eval_images: int = 5000
    device_tflops: float | None = None
    device: str = "auto"
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=500_000, precision="auto", save_every=5000)
    )

    def __post_init__(self) -> None:
        positive("", self, "batch_size", "eval_images")
        for name in ("eval_every", "device_tflops"):
            if getattr(self, name) is not None:
                positive("", self, name)
        alone = self.eval_data is None or self.eval_every is not None
        check("eval_data", self.eval_data, alone, "come with eval_every")
        if self.vocab_size is not None:
            positive("", self, "vocab_size")
            check(
                "vocab_size",
                self.vocab_size,
                self.tokenizer is None,
                "not be given with a tokenizer, which has its own",
            )
        not_negative("", self, "workers", "max_skipped", "reconstruction_weight")
