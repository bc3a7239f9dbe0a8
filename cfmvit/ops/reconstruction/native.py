"""Shapes and gradients of the native reconstruction ops; registered once the library that defines them is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfmvit.ops.reconstruction import checks, reference
from cfmvit.ops.shared import checks as check
from cfmvit.ops.shared.fake_kernel import on_one_device, register_fake
from cfmvit.ops.shared.native_op import NativeOp

_OPS = torch.ops.cfmvit


def register() -> dict[str, NativeOp]:
    """Register fake kernels and gradients, and return the ops."""
    for name, fake in (
        ("masked_cosine_loss_backward", lambda grad, pred, *_: pred.new_empty(pred.shape)),
        ("linear_masked_cosine_loss_backward", _linear_backward_fake),
        ("masked_pixel_loss_backward", lambda grad, pred, *_: pred.new_empty(pred.shape)),
    ):
        register_fake(name, fake)
    name = "linear_masked_cosine_sum_backward"
    torch.library.impl(f"cfmvit::{name}", "CompositeExplicitAutograd", on_one_device(name, _linear_sum_grads))
    ops = (
        NativeOp(
            "masked_cosine_loss",
            _masked_cosine_loss,
            reference.masked_cosine_loss,
            _cosine_backward,
            _cosine_setup,
        ),
        NativeOp(
            "linear_masked_cosine_loss",
            _linear_masked_cosine_loss,
            reference.linear_masked_cosine_loss,
            _linear_backward,
            _linear_setup,
        ),
        NativeOp(
            "linear_masked_cosine_sum",
            _linear_sum,
            reference.linear_masked_cosine_sum,
            _linear_sum_backward,
            _linear_sum_setup,
        ),
        NativeOp(
            "masked_pixel_loss",
            _masked_pixel_loss,
            reference.masked_pixel_loss,
            _pixel_backward,
            _pixel_setup,
        ),
    )
    return {op.name: op for op in ops}


def acc_type(x: Tensor) -> torch.dtype:
    """Return the accumulation type of x: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _masked_cosine_loss(pred: Tensor, target: Tensor, index: Tensor | None, eps: float) -> Tensor:
    checks.cosine("masked_cosine_loss", pred, target, index, values=False)
    return pred.new_empty(pred.shape[:2] if index is None else index.shape, dtype=acc_type(pred))


def _cosine_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred, target, index, ctx.eps = inputs
    ctx.save_for_backward(pred, target, index)


def _cosine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _OPS.masked_cosine_loss_backward(grad, *ctx.saved_tensors, ctx.eps), None, None, None


def _linear_masked_cosine_loss(hidden, weight, bias, target, eps):
    check.floating("linear_masked_cosine_loss", "hidden", hidden, 2, "(R, H)")
    checks.linear("linear_masked_cosine_loss", hidden, weight, bias, target)
    return hidden.new_empty(hidden.shape[0], dtype=acc_type(hidden))


def _linear_backward_fake(grad, hidden, weight, bias, target, eps):
    dtype = acc_type(hidden)
    return (
        hidden.new_empty(hidden.shape),
        weight.new_empty(weight.shape, dtype=dtype),
        weight.new_empty(weight.shape[0], dtype=dtype),
    )


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, target = ctx.saved_tensors
    grads = _OPS.linear_masked_cosine_loss_backward(grad, hidden, weight, bias, target, ctx.eps)
    return (
        grads[0],
        grads[1].to(weight.dtype),
        grads[2].to(weight.dtype) if bias is not None else None,
        None,
        None,
    )


def _linear_sum(hidden, weight, bias, target, eps, needs_hidden, needs_weight):
    dtype, width = acc_type(hidden), weight.shape[0] if needs_weight else 0
    _linear_masked_cosine_loss(hidden, weight, bias, target, eps)
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(hidden.shape[0] if needs_hidden else 0, hidden.shape[1]),
        weight.new_empty(width, weight.shape[1], dtype=dtype),
        weight.new_empty(width, dtype=dtype),
    )


def _linear_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, *_ = inputs
    _, *grads = output
    ctx.mark_non_differentiable(*grads)
    ctx.set_materialize_grads(False)  # or a backward would make zeros as large as the inputs for them
    ctx.save_for_backward(hidden, weight, bias, *grads)


def _linear_sum_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    grads = _OPS.linear_masked_cosine_sum_backward.default(grad, *ctx.saved_tensors)
    needed = ctx.needs_input_grad[:3]
    return *(x if needs else None for x, needs in zip(grads, needed, strict=True)), None, None, None, None


def _linear_sum_grads(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *grads: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs serve their dtypes, and that a second derivative is refused rather than silently zero."""
    by_hidden, by_weight, by_bias = (grad * x.to(grad.dtype) for x in grads)
    return by_hidden.to(hidden.dtype), by_weight.to(weight.dtype), by_bias.to(weight.dtype)


def _masked_pixel_loss(pred, images, index, patch_size, normalize):
    checks.pixels("masked_pixel_loss", pred, images, index, patch_size, values=False)
    return images.new_empty(index.shape)


def _pixel_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred, images, index, ctx.patch_size, ctx.normalize = inputs
    ctx.save_for_backward(pred, images, index)


def _pixel_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    out = _OPS.masked_pixel_loss_backward(grad, *ctx.saved_tensors, ctx.patch_size, ctx.normalize)
    return out, None, None, None, None
