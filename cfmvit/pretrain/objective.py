"""The pretraining objective: contrastive loss plus masked feature reconstruction (CFM-ViT section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit.models import CFMViT
from cfmvit.ops import (
    Masking,
    gather_tokens,
    info_nce,
    linear_masked_cosine_loss,
    masked_pixel_loss,
    random_masking,
    split_tokens,
)


def pretraining_losses(
    model: CFMViT,
    images: Tensor,
    texts: Sequence[str] | Tensor,
    generator: torch.Generator | None = None,
    *,
    reconstruction_weight: float = 2.0,
) -> dict[str, Tensor]:
    """Compute the losses of one batch.

    Args:
        images: (B, 3, H, W), uint8 or float in [0, 1].
        texts: B captions, or ids (B, L).
        generator: source of the masks and of keep_pos, on the images' device.

    Returns:
        0-d losses: ``loss`` = ``contrastive`` + weight * ``reconstruction``, the two parts, ``logit_scale``.
    """
    config = model.config
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(config.logit_scale_max))
    positions = model.visual.positions(images)
    keep_pos = draw_keep_pos(model, images, generator)
    masking = random_masking(
        images.shape[0], positions.shape[0], config.mask_ratio, generator=generator, device=images.device
    )
    visible, features = _embed_and_encode(model, images, masking, positions, keep_pos)
    image_embeds = F.normalize(features.mean(dim=1), dim=-1)
    text_embeds = model.encode_text(texts)
    scale = model.logit_scale.exp()
    losses = {"contrastive": info_nce(image_embeds, text_embeds, scale), "logit_scale": scale.detach()}
    losses["loss"] = losses["contrastive"]
    if visible is not None:
        if config.contrastive_input == "full":
            features = gather_tokens(features, masking.masked)
        losses["reconstruction"] = _reconstruction(model, images, masking, visible, features.detach())
        losses["loss"] = losses["contrastive"] + reconstruction_weight * losses["reconstruction"]
    return losses


def draw_keep_pos(model: CFMViT, images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw keep_pos for positional-embedding dropout, (B,) boolean: True keeps the embedding (section 3.1)."""
    draws = images.shape[0] if model.config.ped_granularity == "sample" else 1
    draw = torch.rand(draws, generator=generator, device=images.device)
    return (draw >= model.config.ped_prob).expand(images.shape[0])


def _embed_and_encode(
    model: CFMViT, images: Tensor, masking: Masking, positions: Tensor, keep_pos: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return the encoded visible tokens (None without reconstruction) and the contrastive branch's tokens.

    No patch is embedded twice, and none that neither branch sees is embedded at all.
    """
    config, visual = model.config, model.visual
    added: dict[str, Any] = {"pos_embed": positions, "keep_pos": keep_pos}
    if config.reconstruction == "none" and config.contrastive_input == "complementary":
        tokens = visual.patch_embed(images, masking.masked)
        return None, visual.encode(tokens + gather_positions(masking.masked, **added).to(tokens.dtype))
    tokens = visual.patch_embed(images)
    added["pos_embed"] = positions.to(tokens.dtype)
    if config.contrastive_input == "complementary":
        visible, masked = split_tokens(tokens, masking, **added)
        return visual.encode(visible), visual.encode(masked)
    features = visual.encode(tokens + keep_pos[:, None, None] * added["pos_embed"])
    if config.reconstruction == "none":
        return None, features
    return visual.encode(gather_tokens(tokens, masking.keep, **added)), features


def gather_positions(index: Tensor, pos_embed: Tensor, keep_pos: Tensor) -> Tensor:
    """Return (B, K, C): the positional embedding of each indexed token, zero where keep_pos is False."""
    return pos_embed[index.long()] * keep_pos[:, None, None].to(pos_embed.dtype)


def _reconstruction(
    model: CFMViT, images: Tensor, masking: Masking, visible: Tensor, target: Tensor
) -> Tensor:
    """Return the mean reconstruction loss over masked tokens; target: (B, M, C), no gradient."""
    decoder, config = model.decoder, model.config
    assert decoder is not None
    height, columns = (side // config.patch_size for side in images.shape[-2:])
    hidden = decoder(visible, masking.restore, height, columns)
    if config.reconstruction == "pixel":
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return masked_pixel_loss(decoder.proj(hidden), pixels, masking.masked, config.patch_size)
    hidden = gather_tokens(hidden, masking.masked)
    return linear_masked_cosine_loss(hidden, decoder.proj.weight, decoder.proj.bias, target)
