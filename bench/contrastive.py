"""Contrastive losses, beside open_clip's and the textbook's, which hold the logits, and the kernels of memeff, inf-cl and siglip-kernel.

Letters: B pairs, D width, ``item`` bytes of an element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit import ops
from cfmvit.bench.draw import Draw
from cfmvit.bench.registry import Case, Cost, Peer, Skip, benchmark, peer

SIZES = {
    "tiny": {"B": 7, "D": 16},
    "small": {"B": 4096, "D": 512},
    "large": {"B": 32768, "D": 768},
    "huge": {"B": 65536, "D": 512},
}
# "32768x768": a point of the grid that the field measures; below it batches that launches dominate, above it 131072 for memory.
BATCHES = (256, 1024, 4096, 16384, 32768, 65536, 131072)
SIZES |= {f"{B}x{D}": {"B": B, "D": D} for B in BATCHES for D in (512, 768, 1024)}
GATE = {
    name: "small" if name in ("large", "huge") else f"4096x{size['D']}"
    for name, size in SIZES.items()
    if size["B"] > 4096
}
SCALE = 30.0
MOST_LOGITS = {"cpu": 2**29, "cuda": 2**32}  # of a peer that holds several matrices of them


def draw_pairs(draw: Draw, B: int, D: int) -> dict[str, Tensor]:
    """Draw features of unit length whose pairs lie near each other, as after training."""
    image = draw.normal(B, D, dtype=torch.float32)
    text = F.normalize(image + 1.5 * draw.normal(B, D, dtype=torch.float32), dim=1)
    return {
        "image": F.normalize(image, dim=1).to(draw.dtype),
        "text": text.to(draw.dtype),
        "logit_scale": torch.tensor(SCALE, device=draw.device),
    }


def _open_clip(draw: Draw, B: int, loss: str) -> Peer | Skip:
    if MOST_LOGITS[draw.device.type] < B * B:
        return Skip(
            f"its logits alone would take {B * B * draw.dtype.itemsize / 2**30:.0f} GiB, several times"
        )
    return peer("open_clip.loss", lambda library: _positional(getattr(library, loss)()))


def _positional(loss: torch.nn.Module) -> Callable[..., Tensor]:
    """Call a loss whose arguments have other names in ours' order: image, text, scale, bias."""
    return lambda **inputs: loss(*inputs.values())


def _kernels(
    draw: Draw, library: str, run: Callable[[ModuleType], Callable[..., Tensor]], *, alike: bool = True
) -> Peer | Skip:
    """Return a peer whose Triton kernels take CUDA tensors alone."""
    if draw.device.type != "cuda":
        return Skip("its kernels need a GPU")
    found = peer(library, run)
    return found if isinstance(found, Skip) else replace(found, alike=alike)


def _memeff(library: ModuleType) -> Callable[..., Tensor]:
    """With the true gradient, which is not its default. It knows no gradient of the temperature, a number of Python."""
    loss = library.MemoryEfficientCLIPLoss(temperature=1 / SCALE, normalized_inputs=True, stable=False)
    return lambda image, text, logit_scale: loss(image, text)


def _inf_cl(library: ModuleType) -> Callable[..., Tensor]:
    """Both directions: it knows one at a time."""

    def run(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
        one = lambda rows, cols: library.cal_flash_loss(rows, cols, scale=logit_scale).mean()
        return (one(image, text) + one(text, image)) / 2

    return run


def _siglip_kernel(library: ModuleType) -> Callable[..., Tensor]:
    return lambda image, text, logit_scale, logit_bias: library.fused_siglip_loss(
        image, text, logit_scale.log(), logit_bias
    )


def _textbook(draw: Draw, B: int, run: Callable[..., Tensor]) -> dict[str, Peer]:
    """Return a loss as textbooks write it: with logits in float32 whatever the features, as ours has them, and in 16 bits, too
    coarse to be compared with anything.
    """
    if MOST_LOGITS[draw.device.type] < B * B:
        return {}
    exact = lambda image, text, **scalars: run(image.float(), text.float(), **scalars)
    return {"float32": Peer(exact)} | ({"eager": Peer(run, alike=False)} if draw.dtype.itemsize == 2 else {})


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Compute CLIP's loss as its paper writes it."""
    logits = logit_scale.to(image.dtype) * image @ text.T
    pairs = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def siglip_loss_of_paper(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Compute SigLIP's loss as its paper writes it."""
    logits = logit_scale.to(image.dtype) * image @ text.T + logit_bias.to(image.dtype)
    labels = 2 * torch.eye(len(image), dtype=image.dtype, device=image.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


@benchmark("contrastive", gate_size=GATE, **SIZES)
def info_nce(draw: Draw, B: int, D: int) -> Case:
    """The loss of CLIP."""
    item = draw.dtype.itemsize
    return Case(
        inputs=draw_pairs(draw, B, D),
        run=ops.info_nce,
        truth=lambda **inputs: ops.info_nce(**inputs, impl="reference"),
        forward=Cost(2 * B * D * item, 2 * B * B * D),
        backward=Cost(4 * B * D * item, 6 * B * B * D),
        gradients=("image", "text", "logit_scale"),
        peers={
            "open_clip": _open_clip(draw, B, "ClipLoss"),
            **_textbook(draw, B, clip_loss),
            "memeff": _kernels(draw, "memeff", _memeff, alike=False),
            "inf-cl": _kernels(draw, "inf_cl", _inf_cl),
        },
    )


@benchmark("contrastive", gate_size=GATE, **SIZES)
def siglip_loss(draw: Draw, B: int, D: int) -> Case:
    """The loss of SigLIP."""
    item = draw.dtype.itemsize
    inputs = draw_pairs(draw, B, D)
    return Case(
        inputs={**inputs, "logit_bias": torch.tensor(-10.0, device=draw.device)},
        run=ops.siglip_loss,
        truth=lambda **inputs: ops.siglip_loss(**inputs, impl="reference"),
        forward=Cost(2 * B * D * item, 2 * B * B * D),
        backward=Cost(4 * B * D * item, 4 * B * B * D),
        gradients=("image", "text", "logit_scale", "logit_bias"),
        peers={
            "open_clip": _open_clip(draw, B, "SigLipLoss"),
            **_textbook(draw, B, siglip_loss_of_paper),
            "siglip-kernel": _kernels(draw, "siglip_kernel", _siglip_kernel),
        },
    )
