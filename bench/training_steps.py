"""Steps of pretraining side by side: what masked features cost, and what pieces cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cfmvit.bench.timing import interleaved, quantiles
from cfmvit.models import ModelConfig, create_model
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.training import World

ALONE = {"reconstruction": "none", "contrastive_input": "full"}


@dataclass(frozen=True)
class Size:
    """What is measured: the towers of ``step`` and their batch; those of the rest, their batch and its pieces."""

    towers: str
    pairs: int
    model: str
    batch: int
    pieces: int
    large: int  # the batch of ``memory``, in pieces as large as those of ``batch``


SIZES = {
    "tiny": Size("cfm_vit_tiny", 4, "cfm_vit_tiny", 8, 2, 16),
    "small": Size("cfm_vit_s16", 8, "cfm_vit_tiny", 128, 4, 4096),
    "large": Size("cfm_vit_b16", 256, "cfm_vit_b16", 1024, 4, 4096),
}


class Training:
    """A model with AdamW, and the steps that it can take."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.model, self.device, self.low = model.to(device).train(), device, precision == "bf16"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(self, gradients: Callable[[], None]) -> None:
        """Take one step with the gradients that a call leaves."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def pairs(config: ModelConfig, count: int, device: torch.device) -> dict[str, Any]:
    """Return a batch of noise, with captions of the full length."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (count, 3, config.image_size, config.image_size), generator=generator, dtype=torch.uint8
    )
    ids = torch.randint(1, 1000, (count, config.context_length), generator=generator)
    return {"images": images.to(device), "texts": ids.to(device), "keys": list(range(count))}


def ours(name: str, count: int, world: World, precision: str, **options: str) -> Callable[[], None]:
    """Return the step of a CFM-ViT over one batch."""
    model = create_model(name, **options)
    training = Training(model, world.device, precision)
    gradients, batch = ContrastiveGradients(model, world, 2.0), pairs(model.config, count, world.device)
    generator = torch.Generator(world.device).manual_seed(0)
    return lambda: training.step(lambda: gradients([batch], generator) and None)


def open_clips(config: ModelConfig, count: int, device: torch.device, precision: str) -> Callable[[], None]:
    """Return the step of open_clip's own model and loss, of towers of the same size.

    Raises:
        ImportError: open_clip is not here.
    """
    import open_clip

    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layers": config.depth,
        "width": config.width,
        "head_width": config.width // config.heads,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_depth,
    }
    model = open_clip.model.CLIP(embed_dim=config.width, vision_cfg=vision, text_cfg=text)
    training, loss = Training(model, device, precision), open_clip.ClipLoss()
    batch = pairs(config, count, device)

    def gradients() -> None:
        loss(*model(batch["images"].float() / 255, batch["texts"])).backward()

    return lambda: training.step(gradients)


def steps(size: Size, device: torch.device, precision: str, seconds: float) -> dict[str, Any]:
    """Time the three steps in turns."""
    world = World(device)
    runs = {
        "CFM-ViT": ours(size.towers, size.pairs, world, precision),
        "contrastive": ours(size.towers, size.pairs, world, precision, **ALONE),
    }
    config = create_model(size.towers).config
    found: dict[str, Any] = {"model": size.towers, "batch": size.pairs, "precision": precision}
    try:
        runs["open_clip"] = open_clips(config, size.pairs, device, precision)
    except ImportError as error:
        found["skipped"] = str(error)
    return found | _compared(runs, "CFM-ViT", device, seconds)


def pieces(size: Size, device: torch.device, precision: str, seconds: float) -> dict[str, Any]:
    """Time a batch that stays whole in pieces, the same pieces with a loss each, and the batch in one pass."""
    model = create_model(size.model)
    training, world = Training(model, device, precision), World(device)
    whole, count = pairs(model.config, size.batch, device), size.batch // size.pieces
    parts = [
        {name: values[start : start + count] for name, values in whole.items()}
        for start in range(0, size.batch, count)
    ]
    gradients, generator = ContrastiveGradients(model, world, 2.0), torch.Generator(device).manual_seed(0)

    def plain() -> None:
        for part in parts:
            gradients([part], generator)

    runs = {
        "cached": lambda: training.step(lambda: gradients(parts, generator) and None),
        "plain": lambda: training.step(plain),
        "one pass": lambda: training.step(lambda: gradients([whole], generator) and None),
    }
    found = {"model": size.model, "batch": size.batch, "pieces": size.pieces, "precision": precision}
    return found | _compared(runs, "cached", device, seconds)


def _compared(
    runs: dict[str, Callable[[], None]], first: str, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Return the seconds of each, and the ``first``'s ratio to the others', the median of the rounds'."""
    times = interleaved(runs, device.type, seconds, cold=False)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[first], others))
        for name, others in times.items()
        if name != first
    }
    return {"seconds": {name: quantiles(found) for name, found in times.items()}, "ratios": ratios}
