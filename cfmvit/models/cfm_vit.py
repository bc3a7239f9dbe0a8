"""CFM-ViT: image tower, text tower, reconstruction decoder and temperature."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmvit.models.checkpoint import read_pretrained, refuse_foreign, write_pretrained
from cfmvit.models.config import ModelConfig, model_config, saved_config
from cfmvit.models.decoder import Decoder
from cfmvit.models.hub import PREFIX, local_folder
from cfmvit.models.image_head import ImageHead
from cfmvit.models.text import TextTransformer
from cfmvit.models.tokenizer import Tokenizer
from cfmvit.models.vision import VisionTransformer
from cfmvit.ops import gather_tokens, random_masking


class CFMViT(nn.Module):
    """Contrastive Feature Masking Vision Transformer (Kim, Angelova, Kuo, ICCV 2023).

    Images and texts meet in a joint space of the image tower's width: final LN, mean over tokens, L2; there is no
    further projection on the image side. Models that were imported from other libraries pool and project as those do.

    Attributes:
        visual, text, decoder: the three networks; ``decoder`` is None without reconstruction, ``text`` without a text tower.
        image_head: pooling and projection of the image tower's tokens.
        logit_scale: log of the inverse temperature, a 0-d parameter.
        tokenizer: turns strings into ids; may be None, then ``encode_text`` takes ids only.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        if tokenizer is not None and config.text_tower and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"create_model: vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, got {config.vocab_size}"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.visual = VisionTransformer(config)
        self.image_head = ImageHead(config)
        self.text = TextTransformer(config) if config.text_tower else None
        self.decoder = Decoder(config) if config.reconstruction != "none" else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale_init)))

    @property
    def embed_dim(self) -> int:
        """Width of the joint space."""
        return self.config.joint_width

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Embed images, (B, 3, H, W) uint8 or float in [0, 1], into (B, C)."""
        _, pooled = self.finish(self.visual.hidden(images))
        return F.normalize(pooled, dim=-1) if normalize else pooled

    def finish(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Turn what ``visual.run`` returns into the patches' tokens after the final LN, (B, K, C), and the embedding, (B, E)."""
        return self.image_head(hidden, self.visual.norm, self.visual.prefix)

    def encode_dense(self, images: Tensor, *, window: int = 0, global_blocks: Sequence[int] = ()) -> Tensor:
        """Embed every patch of images in the joint space: what regions are classified by.

        A model that pools by the mean gives its tokens, projected. One with a class token lets each patch keep its own value in
        the last block, instead of attending (see ``VisionTransformer.forward_values``); one that pools by attention lets the pool
        see one token at a time. Both are scaled to length 1.

        Args:
            images, window, global_blocks: as ``visual.forward_features`` takes them.

        Returns:
            (B, h * w, E), row-major.
        """
        values = self.config.pooling == "class"
        encode = self.visual.forward_values if values else self.visual.forward_features
        return self.dense(encode(images, window=window, global_blocks=global_blocks))

    def dense(self, tokens: Tensor) -> Tensor:
        """Bring tokens or values of ``visual``, (B, N, C), to the joint space as ``encode_dense`` does, (B, N, E)."""
        dense = self.image_head.each(tokens)
        return dense if self.config.pooling == "mean" else F.normalize(dense, dim=-1)

    def encode_text(self, texts: Sequence[str] | Tensor, normalize: bool = True) -> Tensor:
        """Embed texts, strings or ids (B, L) padded with ``config.text_pad_id``, into (B, C).

        Raises:
            ValueError: an empty text, too long ids, strings given to a model without a tokenizer, or no text tower.
        """
        if self.text is None:
            raise ValueError(
                f"encode_text: {self.config.name} has no text tower; pretraining from it gives it one"
            )
        embedding = self.text(self.tokenize(texts))
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def classify_regions(self, image: Any, boxes: Any, labels: Sequence[str] | Any, **options: Any) -> Tensor:
        """Score labels for boxes in an image, (n, labels), without a detector: see ``cfmvit.classify_regions``."""
        # Regions and vocabularies are the detector's, which is made of models.
        from cfmvit.detection.region_classification import classify_regions

        return classify_regions(self, image, boxes, labels, **options)

    def tokenize(self, texts: Sequence[str] | Tensor) -> Tensor:
        """Return ids (B, L) on the model's device; ids given are passed on."""
        if isinstance(texts, Tensor):
            return texts.to(self.device)
        if self.tokenizer is None:
            raise ValueError("encode_text: texts must be token ids, since this model has no tokenizer")
        config = self.config
        ids = self.tokenizer(
            texts, config.context_length, pad_id=config.text_pad_id, full_length=config.text_full_length
        )
        # A tokenizer's post-processor may add ids that are none of its vocabulary.
        if ids.numel() and int(ids.max()) >= self.config.vocab_size:
            raise ValueError(
                f"encode_text: the tokenizer's ids must be below vocab_size {self.config.vocab_size}, got {int(ids.max())}"
            )
        return ids.to(self.device)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, noise: Tensor | None = None, generator: Any = None) -> Tensor:
        """Predict the feature of each token from the visible quarter: the paper's Figure 1.

        Every token is masked in at least one of several complementary draws; a token's prediction is averaged over
        the draws in which it was masked, so it is never a copy of what the encoder saw there.

        Args:
            images: (B, 3, H, W).
            noise: (B, N) that orders the tokens; drawn from ``generator`` when not given.

        Returns:
            (B, N, C) in the joint space (of pixels with a pixel target), not normalised.
        """
        if self.decoder is None:
            raise ValueError("reconstruct: the model was made with reconstruction='none' and has no decoder")
        batch = images.shape[0]
        height, columns = (side // self.visual.patch_size for side in images.shape[-2:])
        count = height * columns
        tokens = self.visual.patch_embed(images)
        positions = self.visual.positions(images).to(tokens.dtype)
        if noise is None:
            noise = torch.rand(batch, count, generator=generator, device=images.device)
        order = noise.argsort(dim=1)
        kept = max(1, int(count * (1 - self.config.mask_ratio)))
        total: Any = 0
        times = torch.zeros(batch, count, 1, device=images.device)
        for start in range(0, count, max(1, min(kept, count - kept))):
            rolled = order.roll(-start, dims=1)
            rank = torch.empty_like(noise).scatter_(
                1, rolled, torch.arange(count, device=noise.device).to(noise).expand_as(noise)
            )
            masking = random_masking(batch, count, self.config.mask_ratio, noise=rank)
            visible = self.visual.encode(gather_tokens(tokens, masking.keep, pos_embed=positions))
            out = self.decoder.proj(self.decoder(visible, masking.restore, height, columns)).float()
            hidden = torch.zeros(batch, count, 1, device=images.device).scatter_(
                1, masking.masked.unsqueeze(-1).long(), 1.0
            )
            total = total + out * hidden
            times += hidden
        return total / times

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``tokenizer.json`` into ``folder``, all or none."""
        write_pretrained(folder, self.state_dict(), self.config.to_dict(), self.tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> CFMViT:
        """Read what ``save_pretrained`` wrote; ``overrides`` change the configuration (``attention="sdpa"``).

        Args:
            folder: the folder, or that of the run that made it; or ``hf:org/name``, which ``huggingface_hub`` finds in its cache
                or fetches. What it finds there of another library's is imported, see ``cfmvit.models.import_model``.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is corrupt or does not fit the configuration, or a folder holds another library's checkpoint.
        """
        path = local_folder(folder)
        if os.fspath(folder).startswith(PREFIX):
            from cfmvit.models.importing.places import import_found

            if (found := import_found(path, overrides)) is not None:
                return found
        saved = read_pretrained(path)
        if "name" not in saved.config:
            refuse_foreign(saved.folder)
            kind = (
                "a detector; its CFM-ViT is its attribute model"
                if "detector" in saved.config
                else "something else"
            )
            raise ValueError(f"from_pretrained: {folder} must hold a CFM-ViT, got {kind}")
        config = saved_config({**saved.config, **overrides}, saved.folder)
        return saved.build(lambda: cls(config, saved.tokenizer))


def create_model(name: str, *, tokenizer: Tokenizer | str | None = None, **overrides: Any) -> CFMViT:
    """Make a CFM-ViT with fresh weights.

    Args:
        name: one of ``list_models()``: cfm_vit_b16, cfm_vit_l16, cfm_vit_s16, cfm_vit_tiny.
        tokenizer: a ``Tokenizer`` or the path of its ``tokenizer.json``; it sets ``vocab_size`` unless that is given.
        overrides: any field of ``ModelConfig``: image_size, patch_size, reconstruction, ped_prob, ...

    Raises:
        ValueError: unknown name or option, or a value out of range.
    """
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = Tokenizer.from_file(tokenizer)
    if tokenizer is not None:
        overrides.setdefault("vocab_size", tokenizer.vocab_size)
    return CFMViT(model_config(name, **overrides), tokenizer)
