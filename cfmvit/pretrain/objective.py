"""The pretraining objective: contrastive loss plus masked feature reconstruction (CFM-ViT section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    clamp_scale(model)
    draws = draw(model, images.shape[-2:], images.shape[0], images.device, generator)
    embedded = Branches(model)(images, model.tokenize(texts), draws)
    return total_loss(embedded, info_nce(*embedded[:3]), reconstruction_weight)


class Draws(NamedTuple):
    """The random choices of a batch."""

    keep_pos: Tensor  # (B,) bool: whether a sample keeps its positional embedding
    noise: Tensor  # (B, N): the order of its tokens, those that are kept first


class Embedded(NamedTuple):
    """What the losses of a batch are made of."""

    image: Tensor  # (B, C) of unit length
    text: Tensor  # (B, C) of unit length
    logit_scale: Tensor  # () already exponentiated
    reconstruction: Tensor | None  # () mean loss over masked tokens


def clamp_scale(model: CFMViT) -> None:
    """Keep the learnt temperature within its bound; called before a step."""
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(model.config.logit_scale_max))


def draw(
    model: CFMViT,
    size: Sequence[int],
    batch: int,
    device: torch.device,
    generator: torch.Generator | None,
) -> Draws:
    """Draw for a batch of images of a size (H, W).

    Positional-embedding dropout (section 3.1) is drawn for each sample, or once for all.
    """
    config = model.config
    options: dict[str, Any] = {"generator": generator, "device": device}
    keep_pos = torch.rand(batch if config.ped_granularity == "sample" else 1, **options) >= config.ped_prob
    tokens = (size[0] // config.patch_size) * (size[1] // config.patch_size)
    return Draws(keep_pos.expand(batch), torch.rand(batch, tokens, **options))


def total_loss(embedded: Embedded, contrastive: Tensor, reconstruction_weight: float) -> dict[str, Tensor]:
    """Return the named losses, of which ``"loss"`` is minimised."""
    losses = {"contrastive": contrastive, "logit_scale": embedded.logit_scale.detach(), "loss": contrastive}
    if embedded.reconstruction is not None:
        losses["reconstruction"] = embedded.reconstruction
        losses["loss"] = contrastive + reconstruction_weight * embedded.reconstruction
    return losses


class Branches(nn.Module):
    """Both branches over a batch, as one module whose forward pass holds all that has gradients."""

    def __init__(self, model: CFMViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, ids: Tensor, draws: Draws, contrastive_only: bool = False) -> Embedded:
        """Embed images (B, 3, H, W) and ids (B, L), and reconstruct, unless the contrastive branch alone is wanted."""
        model, config = self.model, self.model.config
        positions = model.visual.positions(images)
        batch, tokens = draws.noise.shape
        masking = random_masking(batch, tokens, config.mask_ratio, noise=draws.noise)
        reconstructs = config.reconstruction != "none" and not contrastive_only
        visible, before = _embed_and_encode(model, images, masking, positions, draws.keep_pos, reconstructs)
        features, pooled = model.finish(model.visual.blocks[-1](before))
        image_embeds = F.normalize(pooled, dim=-1)
        reconstruction = None
        if visible is not None:
            if config.reconstruction == "feature" and config.reconstruction_target == "values":
                with torch.no_grad():
                    features = model.visual.values(before)
            if config.contrastive_input == "full":
                features = gather_tokens(features, masking.masked)
            reconstruction = _reconstruction(model, images, masking, visible, features.detach())
        return Embedded(image_embeds, model.encode_text(ids), model.logit_scale.exp(), reconstruction)


def _embed_and_encode(
    model: CFMViT,
    images: Tensor,
    masking: Masking,
    positions: Tensor,
    keep_pos: Tensor,
    reconstructs: bool,
) -> tuple[Tensor | None, Tensor]:
    """Return the encoded visible tokens (None without reconstruction) and what the contrastive branch's last block takes.

    No patch is embedded twice, and none that neither branch sees is embedded at all.
    """
    config, visual = model.config, model.visual
    added: dict[str, Any] = {"pos_embed": positions, "keep_pos": keep_pos}
    if not reconstructs and config.contrastive_input == "complementary":
        tokens = visual.patch_embed(images, masking.masked)
        return None, visual.run_to_last(tokens + gather_positions(masking.masked, **added).to(tokens.dtype))
    tokens = visual.patch_embed(images)
    added["pos_embed"] = positions.to(tokens.dtype)
    if config.contrastive_input == "complementary":
        visible, masked = split_tokens(tokens, masking, **added)
        return visual.encode(visible), visual.run_to_last(masked)
    before = visual.run_to_last(tokens + keep_pos[:, None, None] * added["pos_embed"])
    if not reconstructs:
        return None, before
    return visual.encode(gather_tokens(tokens, masking.keep, **added)), before


def gather_positions(index: Tensor, pos_embed: Tensor, keep_pos: Tensor) -> Tensor:
    """Return (B, K, C): the positional embedding of each indexed token, zero where keep_pos is False."""
    return pos_embed[index.long()] * keep_pos[:, None, None].to(pos_embed.dtype)


def _reconstruction(
    model: CFMViT, images: Tensor, masking: Masking, visible: Tensor, features: Tensor
) -> Tensor:
    """Return the mean reconstruction loss over masked tokens; features: (B, M, C) of those, without gradient."""
    decoder, config = model.decoder, model.config
    assert decoder is not None
    height, columns = (side // config.patch_size for side in images.shape[-2:])
    hidden = decoder(visible, masking.restore, height, columns)
    if config.reconstruction == "pixel":
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return masked_pixel_loss(decoder.proj(hidden), pixels, masking.masked, config.patch_size)
    hidden = gather_tokens(hidden, masking.masked)
    with torch.no_grad():
        target = model.image_head.each(features)
    return linear_masked_cosine_loss(hidden, decoder.proj.weight, decoder.proj.bias, target)
