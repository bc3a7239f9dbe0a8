"""Checkpoints of masked autoencoders (MAE, in the form of its authors)."""

from __future__ import annotations

import os
from typing import Any

from cfmvit.models.cfm_vit import CFMViT
from cfmvit.models.hub import local_folder
from cfmvit.models.importing.build import build, refuse, split_positions
from cfmvit.models.importing.files import read_tensors, state_dict
from cfmvit.models.importing.parts import take_blocks, take_pair
from cfmvit.models.importing.source import Source
from cfmvit.models.importing.statistics import IMAGENET, Statistics
from cfmvit.models.importing.timm import BLOCK, initial_scale

# MAE's own sizes; of its heads the weights say nothing.
_HEADS = {768: 12, 1024: 16, 1280: 16}


def from_mae(
    source: Any, *, heads: int | None = None, mean: Any = None, std: Any = None, **options: Any
) -> CFMViT:
    """Make the image tower of a CFM-ViT of a masked autoencoder's encoder, to pretrain from; it has no text tower.

    Images are embedded as the mean of their patches' tokens, as MAE's finetuning does. The decoder, which predicts pixels, and a
    classifier are left out.

    Args:
        source: a file as MAE writes it, or its content, or a state dict.
        heads: attention heads; by default those of MAE's ViT-B, L and H.
        mean, std: image statistics; ImageNet's by default, as MAE has them.
        options: fields of ``ModelConfig``: ``attention``, and what the text tower that pretraining adds is made of.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no such encoder.
    """
    if isinstance(source, (str, os.PathLike)):
        path = local_folder(source)
        tensors, origin = read_tensors(path), str(path)
    else:
        origin = "the checkpoint"
        tensors = state_dict(source, origin)
    reader = Source(tensors, origin)
    width, channels, patch, other = reader.shape("patch_embed.proj.weight")
    if channels != 3 or patch != other:
        refuse(
            f"a patch embedding of the shape {(width, channels, patch, other)}",
            "patches are square, in colour",
        )
    tokens = reader.shape("pos_embed")[1]
    grid = round((tokens - 1) ** 0.5)
    if grid**2 + 1 != tokens:
        refuse(f"a pos_embed of {tokens} tokens", "it must be of a square grid and a class token")
    if heads is None and width not in _HEADS:
        raise ValueError(f"import: {origin} is {width} wide, which no MAE is: give its heads= (--heads)")
    hidden, _ = reader.shape("blocks.0.mlp.fc1.weight")
    finetuned = "fc_norm.weight" in reader
    reader.drop(r"decoder_.*|mask_token|head\.(weight|bias)")
    own = {
        "name": "mae",
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "depth": reader.count(r"blocks\.(\d+)\."),
        "heads": _HEADS[width] if heads is None else heads,
        "mlp_width": hidden,
        "activation": "gelu",
        "class_token": True,
        "norm_after_pool": finetuned,
        "pos_resize": "bicubic",
        "text_tower": False,
    }
    weights = take_blocks(
        reader, "blocks.", "visual.blocks.", BLOCK, depth=own["depth"], width=width, mlp_width=hidden
    )
    weights |= take_pair(reader, "fc_norm" if finetuned else "norm", "visual.norm", width)
    weight = reader.take("patch_embed.proj.weight", width, 3, patch, patch)
    statistics = Statistics.of(IMAGENET.mean if mean is None else mean, IMAGENET.std if std is None else std)
    weight, bias = statistics.fold(weight, reader.take("patch_embed.proj.bias", width))
    weights |= {"visual.patch_embed.proj.weight": weight, "visual.patch_embed.proj.bias": bias}
    positions = reader.take("pos_embed", 1, tokens, width)[0]
    split_positions(weights, positions, reader.take("cls_token", 1, 1, width).flatten())
    weights["logit_scale"] = initial_scale()
    return build(reader, {**own, **options}, weights, None)
