"""Masked autoencoders: the encoder's tokens are the original's."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit.models import from_mae
from cfmvit.models.importing.statistics import IMAGENET

from .originals import BOUND, distance, peer, pixels, randomised, seeded, standardised

timm = peer("timm")


def original() -> torch.nn.Module:
    """Return an encoder as MAE builds it, of timm's blocks, with its names."""
    with seeded():
        return randomised(
            timm.models.vision_transformer.VisionTransformer(
                img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0, norm_layer=_norm
            )
        )


def _norm(width: int, **options: object) -> torch.nn.LayerNorm:
    return torch.nn.LayerNorm(width, eps=1e-6)


def at_grid(positions: Tensor, old: int, new: int) -> Tensor:
    """Bring positions to another grid as MAE's ``interpolate_pos_embed`` does."""
    first, rest = positions[:, :1], positions[:, 1:]
    image = rest.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([first, image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("finetuned", [False, True])
def test_encodes_as_the_original(tmp_path: Path, finetuned: bool) -> None:
    theirs = original()
    state = dict(theirs.state_dict())
    if finetuned:
        state = {
            name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: w
            for name, w in state.items()
        }
    rest = {
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        "mask_token": torch.zeros(1, 1, 8),
        "head.weight": torch.zeros(2, 32),
    }
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {**state, **rest}, "args": argparse.Namespace(lr=1.0), "epoch": 3}, path)
    model = from_mae(path, heads=4)
    for grid in (4, 6):
        images = pixels(8 * grid)
        if grid != 4:
            theirs.set_input_size((8 * grid, 8 * grid))
            theirs.pos_embed.data = at_grid(state["pos_embed"], 4, grid)
        with torch.no_grad():
            x = standardised(images, IMAGENET.mean, IMAGENET.std)
            blocks = theirs.blocks(theirs._pos_embed(theirs.patch_embed(x)))
            tokens = theirs.norm(blocks)
            pooled = theirs.norm(blocks[:, 1:].mean(1)) if finetuned else tokens[:, 1:].mean(1)
            assert distance(model.visual.forward_features(images), tokens[:, 1:]) < BOUND
            assert distance(model.encode_image(images), pooled) < BOUND
    with pytest.raises(ValueError, match=r"is 32 wide, which no MAE is: give its heads="):
        from_mae(path)
