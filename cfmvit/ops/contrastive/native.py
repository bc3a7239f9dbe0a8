"""The ops of the contrastive family: their shapes, gradients and Triton kernels.

`contrastive_lse(image (B, D), text (T, D), logit_scale (), label_offset, image_groups (B,), text_groups (T,) or None)` gives
positive (B,), image_shift (B,), image_sum (B,), text_shift (T,), text_sum (T,) and, with groups, image_max (B,), text_max (T,).
With label_offset None no text belongs to an image: positive has no elements. A log-sum-exp is
logit_scale * shift + log(sum): two numbers, because one would be rounded at the size of a logit, and the probabilities
exp(logit - log-sum-exp) with it.

`sigmoid_loss(image, text, logit_scale, logit_bias, label_offset, needs_image, needs_text)` gives the loss and, since a sigmoid
allows it, the gradients of image, text, logit_scale and logit_bias in one go.

`pair_loss(positive, image_shift, image_sum, text_shift, text_sum (B,), logit_scale, image_weight, text_weight, mean)` makes the
loss () of the first, and its gradients by positive, both sums and logit_scale. An op of its own, because its dozen of small steps
would outlast a small batch.

`info_nce(image, text, logit_scale, label_offset, image_weight, text_weight, mean)` is both in one, which saves a batch of a few
thousand pairs or less four launches of ten. It gives the loss, both shifts, and the gradients of `pair_loss`.

See reference.py. Autocast does not touch them: the kernels accumulate in float32 whatever the features' dtype, and a
rounded logit_scale would cost accuracy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from cfmvit.ops.contrastive import reference
from cfmvit.ops.contrastive.op_checks import (
    check_groups,
    check_pairs,
    check_scalars,
    check_towers,
    check_vectors,
    check_weights,
)
from cfmvit.ops.shared import library
from cfmvit.ops.shared.fake_kernel import on_one_device, register_fake
from cfmvit.ops.shared.native_op import NativeOp

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def compute_dtype(features: Tensor) -> torch.dtype:
    """Dtype of losses, log-sum-exps and sums."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _check_lse(image, text, logit_scale, label_offset, *groups) -> None:
    check_towers("contrastive_lse", image, text, logit_scale, label_offset)
    check_groups("contrastive_lse", image, text, *groups)


def _check_lse_backward(image, text, logit_scale, label_offset, *vectors_and_options) -> None:
    op = "contrastive_lse_backward"
    check_towers(op, image, text, logit_scale, label_offset)
    check_vectors(op, image, text, label_offset, *vectors_and_options[:5])


def _check_info_nce(image, text, logit_scale, label_offset, image_weight, text_weight, *_) -> None:
    check_towers("info_nce", image, text, logit_scale, label_offset)
    check_weights("info_nce", image, text, text_weight)


def _check_info_nce_backward(grad, image, text, logit_scale, label_offset, *vectors_and_options) -> None:
    op = "info_nce_backward"
    check_towers(op, image, text, logit_scale, label_offset)
    check_scalars(op, grad=grad, grad_scale=vectors_and_options[5])
    check_vectors(op, image, text, label_offset, *vectors_and_options[:5])


def _check_sigmoid(image, text, logit_scale, logit_bias, label_offset, *_) -> None:
    check_towers("sigmoid_loss", image, text, logit_scale, label_offset)
    check_scalars("sigmoid_loss", logit_bias=logit_bias)


# What is checked before Triton's kernels are given it; the native library checks by itself.
_CHECKS: dict[str, Callable[..., None]] = {
    "contrastive_lse": _check_lse,
    "contrastive_lse_backward": _check_lse_backward,
    "info_nce": _check_info_nce,
    "info_nce_backward": _check_info_nce_backward,
    "pair_loss": lambda *args: check_pairs(*args[:6]),
    "sigmoid_loss": _check_sigmoid,
}


def _lse_fake(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_groups: Tensor | None,
    text_groups: Tensor | None,
):
    _check_lse(image, text, logit_scale, label_offset, image_groups, text_groups)
    images, texts, has_max = image.shape[0], text.shape[0], text_groups is not None
    pairs = 0 if label_offset is None else images
    sizes = (pairs, images, images, texts, texts, images if has_max else 0, texts if has_max else 0)
    return tuple(image.new_empty(size, dtype=compute_dtype(image)) for size in sizes)


def _grad_like(x: Tensor, needed: bool, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape if needed else (0, 0), dtype=dtype)


def _lse_backward_fake(
    image, text, logit_scale, label_offset, image_shift, text_shift, grad_positive, grad_image_sum, grad_text_sum,
    needs_image, needs_text, full_precision,
):  # fmt: skip
    _check_lse_backward(
        image, text, logit_scale, label_offset, image_shift, text_shift, grad_positive, grad_image_sum, grad_text_sum
    )  # fmt: skip
    dtype = compute_dtype(image) if full_precision else image.dtype
    return (
        _grad_like(image, needs_image, dtype),
        _grad_like(text, needs_text, dtype),
        torch.empty_like(logit_scale),
    )


def _lse_context(ctx, inputs, output) -> None:
    image, text, logit_scale, ctx.label_offset, *_ = inputs
    _, image_shift, _, text_shift, _, image_max, text_max = output
    ctx.mark_non_differentiable(image_shift, text_shift, image_max, text_max)
    ctx.save_for_backward(image, text, logit_scale, image_shift, text_shift)


def _lse_backward(ctx, grad_positive, _image_shift, grad_image_sum, _text_shift, grad_text_sum, *_):
    image, text, logit_scale, image_shift, text_shift = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    grads = torch.ops.cfmvit.contrastive_lse_backward.default(
        image, text, logit_scale, ctx.label_offset, image_shift, text_shift,
        grad_positive, grad_image_sum, grad_text_sum, needed[0], needed[1], False,
    )  # fmt: skip
    return *(grad if needs else None for grad, needs in zip(grads, needed, strict=True)), None, None, None


def _sigmoid_fake(image, text, logit_scale, logit_bias, label_offset, needs_image, needs_text):
    _check_sigmoid(image, text, logit_scale, logit_bias, label_offset)
    dtype = compute_dtype(image)
    scalar = lambda: image.new_empty((), dtype=dtype)
    return (
        scalar(),
        _grad_like(image, needs_image, dtype),
        _grad_like(text, needs_text, dtype),
        scalar(),
        scalar(),
    )


def _sigmoid_context(ctx, inputs, output) -> None:
    _, *grads = output
    ctx.mark_non_differentiable(*grads)
    ctx.set_materialize_grads(False)  # or a backward would make zeros as large as both towers for them
    ctx.save_for_backward(*inputs[:4], *grads)


def _sigmoid_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 7
    grads = torch.ops.cfmvit.sigmoid_loss_backward.default(grad, *ctx.saved_tensors)
    needed = ctx.needs_input_grad[:4]
    return *(x if needs else None for x, needs in zip(grads, needed, strict=True)), None, None, None


def _scale_grads(grad: Tensor, *inputs_and_grads: Tensor) -> tuple[Tensor, ...]:
    """The inputs serve their dtypes, and that a second derivative is refused rather than silently zero."""
    count = len(inputs_and_grads) // 2
    inputs, grads = inputs_and_grads[:count], inputs_and_grads[count:]
    return tuple((grad * g).to(x.dtype) for x, g in zip(inputs, grads, strict=True))


def _pair_loss_fake(
    positive, image_shift, image_sum, text_shift, text_sum, logit_scale, image_weight, text_weight, mean
):
    check_pairs(positive, image_shift, image_sum, text_shift, text_sum, logit_scale)
    empty_like = torch.empty_like
    return positive.new_empty(()), *(empty_like(positive) for _ in range(3)), empty_like(logit_scale)


def _pair_loss_context(ctx, inputs, output) -> None:
    _, *grads = output
    ctx.mark_non_differentiable(*grads)
    ctx.set_materialize_grads(False)
    positive, _, image_sum, _, text_sum, logit_scale, *_ = inputs
    ctx.save_for_backward(positive, image_sum, text_sum, logit_scale, *grads)


def _pair_loss_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 9
    positive, image_sum, text_sum, scale = torch.ops.cfmvit.pair_loss_backward.default(
        grad, *ctx.saved_tensors
    )
    return positive, None, image_sum, None, text_sum, scale, None, None, None


def _info_nce_fake(image, text, logit_scale, label_offset, image_weight, text_weight, mean):
    _check_info_nce(image, text, logit_scale, label_offset, image_weight, text_weight)
    vectors = (image, text, image, image, text)
    empty = lambda *shape: image.new_empty(shape, dtype=compute_dtype(image))
    return empty(), *(empty(x.shape[0]) for x in vectors), torch.empty_like(logit_scale)


def _info_nce_context(ctx, inputs, output) -> None:
    image, text, logit_scale, ctx.label_offset, *_ = inputs
    _, *vectors = output
    ctx.mark_non_differentiable(*vectors)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(image, text, logit_scale, *vectors)


def _info_nce_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 7
    image, text, logit_scale, *vectors = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    grads = torch.ops.cfmvit.info_nce_backward.default(
        grad, image, text, logit_scale, ctx.label_offset, *vectors, needed[0], needed[1]
    )
    return *(x if needs else None for x, needs in zip(grads, needed, strict=True)), *(None,) * 4


def _info_nce_backward_fake(
    grad, image, text, logit_scale, label_offset, image_shift, text_shift, grad_positive, grad_image_sum,
    grad_text_sum, grad_scale, needs_image, needs_text,
):  # fmt: skip
    _check_info_nce_backward(
        grad, image, text, logit_scale, label_offset, image_shift, text_shift, grad_positive, grad_image_sum,
        grad_text_sum, grad_scale,
    )  # fmt: skip
    grads = (_grad_like(x, n, x.dtype) for x, n in ((image, needs_image), (text, needs_text)))
    return *grads, torch.empty_like(logit_scale)


def why_not_triton(features: Tensor) -> str:
    """Say why the Triton kernels can't take such features; empty where they can."""
    if library.core is None:
        return library.core_missing
    if not _HAS_TRITON:
        return "the package triton is not installed"
    if features.device.type != "cuda":
        return f"no Triton kernel for {features.device.type} tensors"
    if features.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"Triton kernels take float32, bfloat16 or float16 features, got {features.dtype}"
    return ""


def _in_triton(name: str):
    def run(*args):
        from cfmvit.triton_kernels import contrastive  # only here: importing cfmvit.ops must not need Triton

        _CHECKS[name](*args)
        with torch.cuda.device(args[0].device):  # Triton launches on the current device
            return getattr(contrastive, name)(*args)

    return on_one_device(name, run)


def _register() -> dict[str, NativeOp]:
    """Register what the library leaves open, and return the ops that have a gradient."""
    define = torch.library
    register_fake("contrastive_lse_backward", _lse_backward_fake)
    register_fake("info_nce_backward", _info_nce_backward_fake)
    define.impl(
        "cfmvit::pair_loss_backward",
        "CompositeExplicitAutograd",
        on_one_device("pair_loss_backward", _scale_grads),
    )
    define.impl(
        "cfmvit::sigmoid_loss_backward",
        "CompositeExplicitAutograd",
        on_one_device("sigmoid_loss_backward", _scale_grads),
    )
    ops = (
        NativeOp("contrastive_lse", _lse_fake, reference.contrastive_lse, _lse_backward, _lse_context),
        NativeOp(
            "pair_loss",
            _pair_loss_fake,
            reference.pair_loss_with_gradients,
            _pair_loss_backward,
            _pair_loss_context,
        ),
        NativeOp(
            "info_nce",
            _info_nce_fake,
            reference.info_nce_with_gradients,
            _info_nce_backward,
            _info_nce_context,
        ),
        NativeOp(
            "sigmoid_loss",
            _sigmoid_fake,
            reference.sigmoid_loss_with_gradients,
            _sigmoid_backward,
            _sigmoid_context,
        ),
    )
    if _HAS_TRITON:
        for name in _CHECKS:
            define.impl(f"cfmvit::{name}", "cuda", _in_triton(name))
    return {op.name: op for op in ops}


OPS = _register() if library.core is not None else {}
