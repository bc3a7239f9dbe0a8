"""How many floating-point operations pretraining takes, from a model's configuration alone.

Those of matrix products, a multiply-add being two, as the field counts; the rest is a few per cent of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from cfmvit.models import ModelConfig


@dataclass(frozen=True)
class Flops:
    """FLOPs of the forward pass of one image and its caption.

    Attributes:
        patches: the embedding of patches, whose input has no gradient.
        image: the contrastive branch's blocks and what follows them.
        text: the text tower.
        reconstruction: the encoder over the visible tokens, and the decoder.
        target: what the decoder is to predict, beyond what the contrastive branch makes anyway; without gradient.
    """

    patches: int
    image: int
    text: int
    reconstruction: int
    target: int

    @property
    def forward(self) -> int:
        """All of the forward pass."""
        return self.patches + self.image + self.text + self.reconstruction + self.target

    @property
    def contrastive(self) -> int:
        """What embeds an image and its caption for the loss."""
        return self.patches + self.image + self.text

    @property
    def training(self) -> int:
        """Forward and backward pass: two more products for each, of the inputs and of the weights."""
        return 3 * self.forward - self.patches - 2 * self.target


def flops(config: ModelConfig, text_tokens: float) -> Flops:
    """Count the FLOPs of a forward pass of the pretraining (CFM-ViT section 3.1).

    Args:
        config: of the model, one of this project's own: imported ones may pool in other ways, which are left out.
        text_tokens: to which captions are padded.
    """
    visible, masked = token_counts(config)
    whole = config.contrastive_input == "full"
    seen, prefix = visible + masked if whole else masked, int(config.class_token)
    reconstructs = config.reconstruction != "none"
    mlp, text_mlp = config.mlp_width or 4 * config.width, config.text_mlp_width or 4 * config.text_width
    pixels = 3 * config.patch_size**2
    embedded = visible + masked if reconstructs or whole else masked
    joint = config.joint_width
    decoder = 0
    if reconstructs:
        target = pixels if config.reconstruction == "pixel" else joint
        width, all_tokens = config.decoder_width, visible + masked
        decoder = 2 * visible * config.width * width
        decoder += config.decoder_depth * block_flops(all_tokens, width, 4 * width)
        # The loss of features fuses the projection of the masked tokens alone.
        decoder += 2 * (all_tokens if config.reconstruction == "pixel" else masked) * width * target
        decoder += config.depth * block_flops(visible + prefix, config.width, mlp)
    values = config.reconstruction == "feature" and config.reconstruction_target == "values"
    projection = 0 if config.embed_dim is None else 2 * config.width * joint
    return Flops(
        patches=2 * embedded * pixels * config.width,
        image=config.depth * block_flops(seen + prefix, config.width, mlp) + projection,
        text=round(
            config.text_depth * block_flops(text_tokens, config.text_width, text_mlp)
            + 2 * config.text_width * joint
        ),
        reconstruction=decoder,
        target=seen * (4 * config.width**2 + 4 * config.width * mlp) if values else 0,
    )


def token_counts(config: ModelConfig) -> tuple[int, int]:
    """Return how many tokens of an image are visible to the reconstruction's encoder, and how many are masked."""
    visible = int(config.grid**2 * (1 - config.mask_ratio))
    return visible, config.grid**2 - visible


def block_flops(tokens: float, width: int, mlp_width: int) -> int:
    """Count a block: queries, keys, values and their projection, the MLP, and the two products of attention."""
    return round(tokens * (8 * width**2 + 4 * width * mlp_width) + 4 * tokens**2 * width)
