"""How much memory pretraining takes on a device, from a model's configuration alone."""

from __future__ import annotations

from typing import Literal

from cfmvit.models import ModelConfig
from cfmvit.pretrain.flops import token_counts

Precision = Literal["fp32", "bf16"]


def state_bytes(parameters: int, precision: Precision) -> dict[str, int]:
    """Return what is held however small the batch: weights, gradients and AdamW's two moments in float32.

    bf16 adds the weights as autocast has converted them, which the backward pass reads again.
    """
    weights = 4 * parameters + (2 * parameters if precision == "bf16" else 0)
    return {"weights": weights, "gradients": 4 * parameters, "AdamW": 8 * parameters}


def activation_bytes(
    config: ModelConfig, images: int, text_tokens: int, precision: Precision, *, checkpointed: bool = False
) -> int:
    """Return what the backward pass of both branches reads of a piece of the batch, and the gradients inside of one block.

    Args:
        config: of the model, one of this project's own.
        images: of the piece.
        text_tokens: to which its captions are padded.
        precision: bf16 as autocast has it on a GPU: LayerNorms in float32, products and attention in bfloat16.
        checkpointed: blocks keep their input alone, and one of them at a time is computed again.
    """
    visible, masked = token_counts(config)
    reconstructs = config.reconstruction != "none"
    seen = visible + masked if config.contrastive_input == "full" else masked
    embedded = visible + masked if reconstructs else seen
    low = 4 if precision == "fp32" else 2
    pixels = 3 * config.patch_size**2
    mlp, text_mlp = config.mlp_width or 4 * config.width, config.text_mlp_width or 4 * config.text_width
    stacks = [
        (config.depth, seen + config.class_token, config.width, mlp),
        (config.text_depth, text_tokens, config.text_width, text_mlp),
    ]
    ends = embedded * pixels * low + seen * config.width * 4 + text_tokens * config.text_width * 4
    if reconstructs:
        width = config.decoder_width
        stacks.append((config.depth, visible + config.class_token, config.width, mlp))
        stacks.append((config.decoder_depth, visible + masked, width, 4 * width))
        ends += visible * config.width * (4 + low) + (visible + masked) * width * 4
        ends += masked * (width * low + config.joint_width * low)
    ends += max(2 * tokens * hidden * low for _, tokens, _, hidden in stacks)
    whole = [(depth, _block_bytes(tokens, width, hidden, low)) for depth, tokens, width, hidden in stacks]
    if checkpointed:
        inputs = sum(depth * tokens * width * 4 for depth, tokens, width, _ in stacks)
        return images * (ends + inputs + max(block for _, block in whole))
    return images * (ends + sum(depth * block for depth, block in whole))


def _block_bytes(tokens: int, width: int, mlp_width: int, low: int) -> int:
    """Return what a block keeps: the inputs of both norms, those of its four products, queries, keys and values, and the GELU's."""
    return tokens * (2 * width * 4 + low * (6 * width + 2 * mlp_width))
