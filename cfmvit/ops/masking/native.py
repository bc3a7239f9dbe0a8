"""Shapes and gradients of the native masking ops; registered once the library that defines them is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfmvit.ops.masking import checks, reference
from cfmvit.ops.shared import checks as check
from cfmvit.ops.shared.fake_kernel import register_fake
from cfmvit.ops.shared.native_op import NativeOp

_OPS = torch.ops.cfmvit


def register() -> dict[str, NativeOp]:
    """Register fake kernels and gradients, and return the ops."""
    for name, fake in (
        ("gather_tokens_backward", _gather_tokens_backward_fake),
        ("split_tokens_backward", _split_tokens_backward_fake),
        ("restore_tokens_backward", _restore_tokens_backward_fake),
        ("gather_patches_backward", lambda grad, _, __, ___, c, h, w: grad.new_empty(grad.shape[0], c, h, w)),
    ):
        register_fake(name, fake)
    ops = (
        NativeOp("random_masking", _random_masking, reference.random_masking),
        NativeOp(
            "gather_tokens",
            _gather_tokens,
            reference.gather_tokens,
            _gather_tokens_backward,
            _gather_tokens_setup,
        ),
        NativeOp(
            "split_tokens", _split_tokens, reference.split_tokens, _split_tokens_backward, _split_tokens_setup
        ),
        NativeOp(
            "restore_tokens",
            _restore_tokens,
            reference.restore_tokens,
            _restore_tokens_backward,
            _restore_tokens_setup,
        ),
        NativeOp(
            "gather_patches",
            _gather_patches,
            reference.gather_patches,
            _gather_patches_backward,
            _gather_patches_setup,
        ),
    )
    return {op.name: op for op in ops}


def _shape(tokens: Tensor, index: Tensor) -> tuple[int, int, int]:
    return tokens.shape[0], index.shape[1], tokens.shape[2]


def _random_masking(noise: Tensor, kept: int) -> tuple[Tensor, ...]:
    check.floating("random_masking", "noise", noise, 2, "(B, N)")
    batch, count = noise.shape
    return tuple(noise.new_empty(batch, size, dtype=torch.int64) for size in (kept, count - kept, count))


def _grads(grad: Tensor, count: int, needs_tokens: bool, needs_pos: bool) -> tuple[Tensor, Tensor]:
    batch, _, width = grad.shape
    return (
        grad.new_empty((batch, count, width) if needs_tokens else (0,)),
        grad.new_empty((count, width) if needs_pos else (0,)),
    )


def _gather_tokens(tokens, index, pos_embed, keep_pos):
    checks.gather("gather_tokens", tokens, index, pos_embed, keep_pos, values=False)
    return tokens.new_empty(_shape(tokens, index))


def _gather_tokens_backward_fake(grad, index, keep_pos, num_tokens, needs_tokens, needs_pos):
    return _grads(grad, num_tokens, needs_tokens, needs_pos)


def _gather_tokens_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, index, _, keep_pos = inputs
    ctx.num_tokens = tokens.shape[1]
    ctx.save_for_backward(index, keep_pos)


def _gather_tokens_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    index, keep_pos = ctx.saved_tensors
    needs_tokens, _, needs_pos, _ = ctx.needs_input_grad
    tokens, pos = _OPS.gather_tokens_backward(grad, index, keep_pos, ctx.num_tokens, needs_tokens, needs_pos)
    return tokens if needs_tokens else None, None, pos if needs_pos else None, None


def _split_tokens(tokens, keep, masked, pos_embed, keep_pos):
    checks.split("split_tokens", tokens, keep, masked, pos_embed, keep_pos, values=False)
    return tokens.new_empty(_shape(tokens, keep)), tokens.new_empty(_shape(tokens, masked))


def _split_tokens_backward_fake(grad_visible, grad_masked, keep, masked, keep_pos, needs_tokens, needs_pos):
    return _grads(grad_visible, keep.shape[1] + masked.shape[1], needs_tokens, needs_pos)


def _split_tokens_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, keep, masked, _, keep_pos = inputs
    ctx.save_for_backward(keep, masked, keep_pos)


def _split_tokens_backward(ctx: Any, grad_visible: Tensor, grad_masked: Tensor) -> tuple[Tensor | None, ...]:
    keep, masked, keep_pos = ctx.saved_tensors
    needs_tokens, _, _, needs_pos, _ = ctx.needs_input_grad
    tokens, pos = _OPS.split_tokens_backward(
        grad_visible, grad_masked, keep, masked, keep_pos, needs_tokens, needs_pos
    )
    return tokens if needs_tokens else None, None, None, pos if needs_pos else None, None


def _restore_tokens(visible, mask_token, restore, pos_embed):
    checks.restore("restore_tokens", visible, mask_token, restore, pos_embed, values=False)
    return visible.new_empty(_shape(visible, restore))


def _restore_tokens_backward_fake(grad, restore, kept, needs_pos):
    batch, count, width = grad.shape
    return (
        grad.new_empty(batch, kept, width),
        grad.new_empty(width),
        grad.new_empty((count, width) if needs_pos else (0,)),
    )


def _restore_tokens_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    visible, _, restore, _ = inputs
    ctx.kept = visible.shape[1]
    ctx.save_for_backward(restore)


def _restore_tokens_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (restore,) = ctx.saved_tensors
    needs_pos = ctx.needs_input_grad[3]
    visible, mask_token, pos = _OPS.restore_tokens_backward(grad, restore, ctx.kept, needs_pos)
    return visible, mask_token, None, pos if needs_pos else None


def _gather_patches(images, index, patch_size, mean, std, dtype):
    checks.images("gather_patches", images, index, patch_size, values=False)
    batch, channels, height, width = images.shape
    count = (height // patch_size) * (width // patch_size) if index is None else index.shape[1]
    return images.new_empty(batch, count, channels * patch_size**2, dtype=dtype)


def _gather_patches_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, index, ctx.patch_size, _, std, _ = inputs
    ctx.sizes, ctx.dtype = images.shape[1:], images.dtype
    ctx.save_for_backward(index, std)


def _gather_patches_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    index, std = ctx.saved_tensors
    images = _OPS.gather_patches_backward(grad.to(ctx.dtype), index, ctx.patch_size, std, *ctx.sizes)
    return images, None, None, None, None, None
