"""The one op of the contrastive family: shapes, gradient and choice of implementation.

`contrastive_lse(image (B, D), text (T, D), logit_scale (), label_offset, group_ids (T,) or None)` gives positive (B,),
image_lse (B,), text_lse (T,) and, with group_ids, image_max (B,), text_max (T,): see reference/contrastive.py. Autocast does
not touch it: the kernels accumulate in float32 whatever the features' dtype, and a rounded logit_scale would cost accuracy.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from cfmvit.ops import _library

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_OP = "cfmvit::contrastive_lse"
_BACKWARD = "cfmvit::contrastive_lse_backward"


def _check(
    image: Tensor, text: Tensor, logit_scale: Tensor, label_offset: int, group_ids: Tensor | None
) -> None:
    """Repeat the rules of csrc/contrastive_checks.h for tensors without data."""
    torch._check(
        image.dim() == 2 and text.dim() == 2 and image.shape[1] == text.shape[1],
        lambda: (
            f"contrastive_lse: image and text must be matrices of equal width, got {image.dim()}-d and {text.dim()}-d "
            f"of width {image.shape[-1]} and {text.shape[-1]}"
        ),
    )
    torch._check(
        image.dtype == text.dtype and image.is_floating_point(),
        lambda: (
            f"contrastive_lse: image and text must have one floating dtype, got {image.dtype} and {text.dtype}"
        ),
    )
    torch._check(
        logit_scale.dim() == 0, lambda: f"contrastive_lse: logit_scale must be 0-d, got {logit_scale.dim()}-d"
    )
    torch._check(
        label_offset >= 0 and text.shape[0] >= image.shape[0] + label_offset,
        lambda: (
            f"contrastive_lse: text must have at least image rows + label_offset rows, got {text.shape[0]} rows for "
            f"{image.shape[0]} + {label_offset}"
        ),
    )
    if group_ids is not None:
        torch._check(
            group_ids.shape == text.shape[:1],
            lambda: (
                f"contrastive_lse: group_ids must have one id per text, got {group_ids.numel()} for {text.shape[0]}"
            ),
        )


def _fake(image: Tensor, text: Tensor, logit_scale: Tensor, label_offset: int, group_ids: Tensor | None):
    _check(image, text, logit_scale, label_offset, group_ids)
    images, texts = image.shape[0], text.shape[0]
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    has_max = group_ids is not None
    sizes = (images, images, texts, images if has_max else 0, texts if has_max else 0)
    return tuple(image.new_empty(size, dtype=dtype) for size in sizes)


def _fake_backward(
    image, text, logit_scale, label_offset, image_lse, text_lse, grad_positive, grad_image, grad_text, needs_image,
    needs_text,
):  # fmt: skip
    return (
        torch.empty_like(image, memory_format=torch.contiguous_format)
        if needs_image
        else image.new_empty(0, 0),
        torch.empty_like(text, memory_format=torch.contiguous_format) if needs_text else text.new_empty(0, 0),
        torch.empty_like(logit_scale),
    )


def _setup_context(ctx, inputs, output) -> None:
    image, text, logit_scale, ctx.label_offset, _ = inputs
    _, image_lse, text_lse, image_max, text_max = output
    ctx.mark_non_differentiable(image_max, text_max)
    ctx.save_for_backward(image, text, logit_scale, image_lse, text_lse)


def _backward(ctx, grad_positive, grad_image_lse, grad_text_lse, *_):
    image, text, logit_scale, image_lse, text_lse = ctx.saved_tensors
    needs_image, needs_text, needs_scale = ctx.needs_input_grad[:3]
    grads = torch.ops.cfmvit.contrastive_lse_backward.default(
        image, text, logit_scale, ctx.label_offset, image_lse, text_lse,
        grad_positive, grad_image_lse, grad_text_lse, needs_image, needs_text,
    )  # fmt: skip
    needed = (needs_image, needs_text, needs_scale)
    return *(grad if needs else None for grad, needs in zip(grads, needed, strict=True)), None, None


def _double_backward(ctx, *grads):
    raise RuntimeError("contrastive_lse: double backward is not supported; impl='reference' has it")


def why_not_triton(features: Tensor) -> str:
    """Say why the Triton kernels can't take such features; empty where they can."""
    if _library.core is None:
        return _library.core_missing
    if not _HAS_TRITON:
        return "the package triton is not installed"
    if features.device.type != "cuda":
        return f"no Triton kernel for {features.device.type} tensors"
    if features.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"Triton kernels take float32, bfloat16 or float16 features, got {features.dtype}"
    return ""


def _triton(*args):
    from cfmvit.triton_kernels import contrastive

    return contrastive.contrastive_lse(*args)


def _triton_backward(*args):
    from cfmvit.triton_kernels import contrastive

    return contrastive.contrastive_lse_backward(*args)


def register() -> None:
    """Give the native op its fake kernels, gradients and Triton kernels. Called once its library is loaded."""
    if _HAS_TRITON:
        torch.library.impl(_OP, "cuda", _triton)
        torch.library.impl(_BACKWARD, "cuda", _triton_backward)
    torch.library.register_fake(_OP, _fake)
    torch.library.register_fake(_BACKWARD, _fake_backward)
    torch.library.register_autograd(_OP, _backward, setup_context=_setup_context)
    torch.library.register_autograd(_BACKWARD, _double_backward)
