"""The native ops of the family as PyTorch sees them: shapes, gradients. Arguments as in csrc/schema.cpp.

Autocast does not touch them: features keep their dtype (sums are float32 anyway), and boxes must not lose digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfmvit.ops.regions import reference
from cfmvit.ops.regions.reference import MAX_SAMPLES
from cfmvit.ops.shared.fake_kernel import register_fake
from cfmvit.ops.shared.native_op import NativeOp

_ops = torch.ops.cfmvit


def _interruptible(op: Callable[..., Any], *args: Any) -> Any:
    """Call an op in a backward pass; the exception of a signal that ended it is raised here."""
    try:
        return op(*args)
    except RuntimeError as error:
        str(error)  # any call: the interpreter raises what a signal's handler raised at its next one
        raise


def _check_rois(op: str, rois: Tensor) -> None:
    torch._check(
        rois.dim() == 2 and rois.shape[1] == 5,
        lambda: f"{op}: boxes must have shape (R, 5), got {tuple(rois.shape)}",
    )
    torch._check(
        rois.dtype in (torch.float32, torch.float64),
        lambda: f"{op}: boxes must be float32 or float64, got {rois.dtype}",
    )


def _check_sampling(
    op: str, pooled_height: int, pooled_width: int, sampling_ratio: int, *, least: int = 0
) -> None:
    bins = f"{pooled_height} x {pooled_width}"
    rule = "one or two positive integers" if least else "one or two integers, none negative"
    torch._check(
        pooled_height >= least and pooled_width >= least,
        lambda: f"{op}: output_size must be {rule}, got {bins}",
    )
    for side in (pooled_height, pooled_width):
        torch._check(
            side <= MAX_SAMPLES, lambda: f"{op}: output_size must be at most {MAX_SAMPLES}, got {bins}"
        )
        torch._check(
            side * sampling_ratio <= MAX_SAMPLES and sampling_ratio <= MAX_SAMPLES,
            lambda: (
                f"{op}: sampling_ratio must give at most {MAX_SAMPLES} samples along a side of a box, "
                f"got {sampling_ratio} in each of {bins} bins"
            ),
        )


def _channels_last(map: Tensor) -> bool:
    """Tell whether channels are neighbours in memory; a result keeps them so."""
    return map.stride(1) == 1 and not map.is_contiguous()


def _empty_map(like: Tensor, size: tuple[int, ...], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def _roi_align_fake(
    input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned
):  # fmt: skip
    op = "roi_align"
    torch._check(
        input.dim() == 4, lambda: f"{op}: input must have 4 dimensions, got shape {tuple(input.shape)}"
    )
    _check_rois(op, rois)
    _check_sampling(op, pooled_height, pooled_width, sampling_ratio)
    return _empty_map(
        input, (rois.shape[0], input.shape[1], pooled_height, pooled_width), _channels_last(input)
    )


def _roi_align_backward_fake(
    grad, rois, spatial_scale, batch, channels, height, width, sampling_ratio, aligned, channels_last
):
    return _empty_map(grad, (batch, channels, height, width), channels_last)


def _roi_align_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, rois, ctx.spatial_scale, _, _, ctx.sampling_ratio, ctx.aligned = inputs
    ctx.save_for_backward(rois)
    ctx.shape, ctx.channels_last = input.shape, _channels_last(input)


def _roi_align_backward(ctx: Any, grad: Tensor) -> tuple:
    (rois,) = ctx.saved_tensors
    grad_input = _interruptible(
        _ops.roi_align_backward.default,
        grad,
        rois,
        ctx.spatial_scale,
        *ctx.shape,
        ctx.sampling_ratio,
        ctx.aligned,
        ctx.channels_last,
    )
    return grad_input, *[None] * 6


def _multilevel_fake(
    features, rois, levels, scales, pooled_height, pooled_width, sampling_ratio, aligned
):  # fmt: skip
    op = "multilevel_roi_align"
    _check_rois(op, rois)
    _check_sampling(op, pooled_height, pooled_width, sampling_ratio)
    torch._check(
        len(features) > 0 and len(features) == len(scales),
        lambda: f"{op}: scales must have one number for each of {len(features)} levels, got {len(scales)}",
    )
    size = (rois.shape[0], features[0].shape[1], pooled_height, pooled_width)
    return _empty_map(features[0], size, _channels_last(features[0]))


def _multilevel_backward_fake(
    grad, rois, levels, scales, batch, channels, heights, widths, sampling_ratio, aligned, channels_last
):
    return [
        _empty_map(grad, (batch, channels, height, width), channels_last)
        for height, width in zip(heights, widths)
    ]


def _multilevel_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    features, rois, levels, ctx.scales, _, _, ctx.sampling_ratio, ctx.aligned = inputs
    ctx.save_for_backward(rois, levels)
    ctx.shapes, ctx.channels_last = [level.shape for level in features], _channels_last(features[0])


def _multilevel_backward(ctx: Any, grad: Tensor) -> tuple:
    rois, levels = ctx.saved_tensors
    batch, channels = ctx.shapes[0][:2]
    heights, widths = [shape[2] for shape in ctx.shapes], [shape[3] for shape in ctx.shapes]
    grads = _interruptible(
        _ops.multilevel_roi_align_backward.default, grad, rois, levels, ctx.scales, batch, channels, heights, widths, ctx.sampling_ratio, ctx.aligned,
        ctx.channels_last,
    )  # fmt: skip
    return grads, *[None] * 7


def _pool_fake(
    tokens, rois, grid_height, grid_width, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned,
    num_prefix_tokens, normalize,
):  # fmt: skip
    op = "pool_regions"
    torch._check(
        tokens.dim() == 3, lambda: f"{op}: tokens must have 3 dimensions, got shape {tuple(tokens.shape)}"
    )
    _check_rois(op, rois)
    _check_sampling(op, pooled_height, pooled_width, sampling_ratio, least=1)
    expected = num_prefix_tokens + grid_height * grid_width
    torch._check(
        tokens.shape[1] == expected,
        lambda: (
            f"{op}: tokens must have num_prefix_tokens + h * w = {expected} tokens, got {tokens.shape[1]}"
        ),
    )
    return tokens.new_empty(rois.shape[0], tokens.shape[2])


def _pool_backward_fake(
    grad, rois, tokens, batch, num_tokens, grid_height, grid_width, spatial_scale, pooled_height, pooled_width,
    sampling_ratio, aligned, num_prefix_tokens,
):  # fmt: skip
    return grad.new_empty(batch, num_tokens, grad.shape[1])


def _pool_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    tokens, rois, *ctx.arguments, normalize = inputs
    ctx.size = tokens.shape[:2]
    ctx.save_for_backward(rois, *([tokens] if normalize else []))


def _pool_backward(ctx: Any, grad: Tensor) -> tuple:
    rois, *tokens = ctx.saved_tensors
    grad_tokens = _interruptible(
        _ops.pool_regions_backward.default,
        grad,
        rois,
        tokens[0] if tokens else None,
        *ctx.size,
        *ctx.arguments,
    )
    return grad_tokens, *[None] * 10


def _score_fake(
    region_embeds, text_embeds, vlm_embeds, exponent, objectness, temperature, vlm_temperature, objectness_power,
    renormalize,
):  # fmt: skip
    op, (rows, width), labels = "score_regions", region_embeds.shape, text_embeds.shape[0] - 1
    for name, x, shape in (
        ("text_embeds", text_embeds, (labels + 1, width)),
        ("vlm_embeds", vlm_embeds, (rows, width)),
        ("exponent", exponent, (labels,)),
        ("objectness", objectness, (rows,)),
        ("temperature", temperature, ()),
        ("vlm_temperature", vlm_temperature, ()),
    ):
        if x is not None:
            torch._check(
                x.dim() == len(shape) and all(a == b for a, b in zip(x.shape, shape)),
                lambda: f"{op}: {name} must have shape {tuple(shape)}, got {tuple(x.shape)}",  # noqa: B023
            )
            torch._check(
                x.device == region_embeds.device,
                lambda: f"{op}: {name} must be on {region_embeds.device}, got {x.device}",  # noqa: B023
            )
    return exponent.new_empty(rows, labels)


def _levels_fake(rois, finest, count, canonical_scale, canonical_level):
    _check_rois("pyramid_levels", rois)
    return rois.new_empty(rois.shape[0], dtype=torch.int64)


def register() -> dict[str, NativeOp]:
    """Register fake kernels and gradients, and return the ops. Called once the library that defines them is loaded."""
    for name, fake in (
        ("roi_align_backward", _roi_align_backward_fake),
        ("multilevel_roi_align_backward", _multilevel_backward_fake),
        ("pool_regions_backward", _pool_backward_fake),
    ):
        register_fake(name, fake)
    ops = (
        NativeOp("roi_align", _roi_align_fake, reference.roi_align, _roi_align_backward, _roi_align_context),
        NativeOp(
            "multilevel_roi_align",
            _multilevel_fake,
            reference.multilevel_roi_align,
            _multilevel_backward,
            _multilevel_context,
        ),
        NativeOp("pyramid_levels", _levels_fake, reference.pyramid_levels),
        NativeOp("pool_regions", _pool_fake, reference.pool_regions, _pool_backward, _pool_context),
        NativeOp("score_regions", _score_fake, reference.score_regions),
    )
    return {op.name: op for op in ops}
