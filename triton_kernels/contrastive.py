"""contrastive_lse and its backward in Triton; the kernels are in contrastive_lse.py and contrastive_sigmoid.py.

Forward: 2 B T D operations, tiles of logits live in registers only. Backward: the tiles again, their gradient rounded to the
features' dtype in blocks within a workspace, and two plain matrix products per block with float32 sums.

A batch of one block (of bfloat16 features in aligned rows) takes four launches forward and six backward and multiplies four
times, where two dense cross-entropies over logits in memory take some thirty launches and six products: small batches have no
other route. Nothing here looks at data on the host, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import contrastive_lse as lse
from . import contrastive_sigmoid as sigmoid
from . import contrastive_vectors as vectors
from .contrastive_config import cdiv, config_of, first_pair, matrices, operands, options
from .contrastive_sweep import PAIRS, Block, Sweep

FORWARD_STRIP = 8192  # rows whose partial sums exist at one time


def contrastive_lse(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse` (see cfmvit.ops.reference.contrastive) of bf16, fp16 or fp32 features."""
    image, text = image.contiguous(), text.contiguous()
    (images, width), texts = image.shape, text.shape[0]
    config = config_of(image, "forward")
    vector = lambda *shape: image.new_empty(shape, dtype=torch.float32)
    positive = _pairs(image, text, logit_scale, label_offset)
    logit_operands = matrices(*operands(image, text, config), config)
    pair = first_pair(label_offset, text)
    image_lse, text_lse = vector(images), vector(texts)
    with_max = text_groups is not None
    groups = (image_groups, text_groups) if with_max else (image, image)
    image_max, text_max = vector(images if with_max else 0), vector(texts if with_max else 0)

    strips = cdiv(images, FORWARD_STRIP)
    col_lse, col_max = vector(strips, texts), vector(strips if with_max else 0, texts)
    tiles_n = cdiv(texts, config.block_n)
    for i in range(strips):
        first, end = i * FORWARD_STRIP, min((i + 1) * FORWARD_STRIP, images)
        strip, tiles_m = end - first, cdiv(end - first, config.block_m)
        row_part, col_part = vector(tiles_n, strip), vector(tiles_m, texts)
        row_max_part = torch.empty_like(row_part) if with_max else row_part
        col_max_part = torch.empty_like(col_part) if with_max else col_part
        lse.lse_fwd_kernel[(tiles_m * tiles_n,)](
            *logit_operands, logit_scale, *groups, row_part, col_part, row_max_part, col_max_part,
            first, end, strip, texts, width, pair, WITH_MAX=with_max, **options(config, image),
        )  # fmt: skip
        last = strips == 1
        _merge(row_part, image_lse[first:end], col_part, text_lse if last else col_lse[i], last)
        if with_max:
            to = text_max if last else col_max[i]
            _merge(row_max_part, image_max[first:end], col_max_part, to, last, is_max=True)
    if strips > 1:
        _merge(None, None, col_lse, text_lse, True)
        if with_max:
            _merge(None, None, col_max, text_max, True, is_max=True)
    return positive, image_lse, text_lse, image_max, text_max


def contrastive_lse_backward(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_lse: Tensor,
    text_lse: Tensor,
    grad_positive: Tensor,
    grad_image_lse: Tensor,
    grad_text_lse: Tensor,
    needs_image: bool,
    needs_text: bool,
    full_precision: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse_backward`."""
    image, text = image.contiguous(), text.contiguous()
    grad_positive, row_grad, col_grad = (
        x.float().contiguous() for x in (grad_positive, grad_image_lse, grad_text_lse)
    )
    store_scale = _store_scale(image.dtype, row_grad, col_grad)
    sweep = Sweep(image, text, label_offset, "backward")
    scale_parts = sweep.parts(cdiv(sweep.pairs, PAIRS))

    def launch(block: Block, grad_logit: Tensor | TensorDescriptor | None, stride: int) -> None:
        lse.lse_bwd_kernel[(block.programs,)](
            *sweep.matrices, logit_scale, image_lse, text_lse, row_grad, col_grad, store_scale,
            grad_logit, stride, scale_parts[block.first_program :], *block[:4], image.shape[1],
            sweep.first_pair, **sweep.options,
        )  # fmt: skip

    dtype = torch.float32 if full_precision else image.dtype
    pair_parts = scale_parts[sweep.programs :]
    grads = sweep.run(
        launch, grad_positive, logit_scale, store_scale, needs_image, needs_text, dtype, pair_parts
    )
    return *grads, *_totals(logit_scale.dtype, scale_parts)


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    label_offset: int | None,
    needs_image: bool,
    needs_text: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::sigmoid_loss` (see cfmvit.ops.reference.contrastive) and its gradients in one sweep."""
    image, text = image.contiguous(), text.contiguous()
    sweep = Sweep(image, text, label_offset, "sigmoid")
    sums = sweep.parts(), sweep.parts(), sweep.parts()
    pair_grad = image.new_empty(0 if label_offset is None else image.shape[0], dtype=torch.float32)
    # A sigmoid is at most 1: float16 needs no more than a constant to keep small ones out of its subnormals.
    store_scale = image.new_full((), 2.0**13, dtype=torch.float32) if image.dtype == torch.float16 else None

    def launch(block: Block, grad_logit: Tensor | TensorDescriptor | None, stride: int) -> None:
        parts = (x[block.first_program :] for x in sums)
        sigmoid.sigmoid_kernel[(block.programs,)](
            *sweep.matrices, image, text, logit_scale, logit_bias, store_scale, grad_logit, stride, pair_grad, *parts,
            *block[:4], image.shape[1], sweep.first_pair, PAIRS=PAIRS, **sweep.options,
        )  # fmt: skip

    grads = sweep.run(launch, pair_grad, logit_scale, store_scale, needs_image, needs_text, torch.float32)
    loss, grad_scale, grad_bias = _totals(torch.float32, *sums)
    return loss, *grads, grad_scale, grad_bias


def pair_loss(
    positive: Tensor, image_lse: Tensor, text_lse: Tensor, image_weight: float, text_weight: float, mean: bool
) -> Tensor:
    """Compute `cfmvit::pair_loss`."""
    out, rows = positive.new_empty(()), positive.shape[0]
    weights = _weights(image_weight, text_weight, rows, mean)
    vectors.pair_loss_kernel[(1,)](
        *(x.contiguous() for x in (positive, image_lse, text_lse)), out, *weights, rows, BLOCK=1024, num_warps=8
    )  # fmt: skip
    return out


def pair_loss_backward(
    grad: Tensor,
    positive: Tensor,
    image_lse: Tensor,
    text_lse: Tensor,
    image_weight: float,
    text_weight: float,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cfmvit::pair_loss_backward`."""
    grads, rows = tuple(torch.empty_like(positive) for _ in range(3)), positive.shape[0]
    weights = _weights(image_weight, text_weight, rows, mean)
    vectors.pair_loss_bwd_kernel[(cdiv(rows, 256),)](
        grad, *(x.contiguous() for x in (positive, image_lse, text_lse)), *grads, *weights, rows, BLOCK=256
    )
    return grads


def _weights(image_weight: float, text_weight: float, rows: int, mean: bool) -> tuple[float, float]:
    count = rows if mean else 1
    return image_weight / count, text_weight / count


def _pairs(image: Tensor, text: Tensor, scale: Tensor, label_offset: int | None) -> Tensor:
    images, width = image.shape
    out = image.new_empty(0 if label_offset is None else images, dtype=torch.float32)
    if label_offset is None:
        return out
    vectors.pair_kernel[(cdiv(images, 16),)](
        image, text, scale, out, images, width, label_offset, BLOCK=16, BLOCK_D=128
    )
    return out


def _merge(
    row_parts: Tensor | None, rows: Tensor | None, col_parts: Tensor, cols: Tensor, last: bool, *, is_max: bool = False
) -> None:  # fmt: skip
    """Merge parts of rows and of columns; the columns' for the last time, or with more strips to follow."""
    size = 0 if rows is None else rows.shape[0]
    vectors.merge_kernel[(cdiv(size, 64) + cdiv(cols.shape[0], 64),)](
        col_parts if row_parts is None else row_parts, cols if rows is None else rows, col_parts, cols,
        0 if row_parts is None else row_parts.shape[0], size, col_parts.shape[0], cols.shape[0],
        IS_MAX=is_max, COLS_TO_NATURAL=last, BLOCK_P=32, BLOCK=64,
    )  # fmt: skip


def _totals(dtype: torch.dtype, *parts: Tensor) -> tuple[Tensor, ...]:
    totals = tuple(x.new_empty((), dtype=dtype) for x in parts)
    pairs = [x for pair in zip(parts, totals, strict=True) for x in pair]
    unused = pairs[:2] * (3 - len(parts))
    vectors.total_kernel[(len(parts),)](*pairs, *unused, parts[0].shape[0], BLOCK=4096, num_warps=8)
    return totals


def _store_scale(dtype: torch.dtype, row_grad: Tensor, col_grad: Tensor) -> Tensor | None:
    """Bring float16 gradients by logits to at most 2^14, on the device; the other dtypes have range enough."""
    if dtype != torch.float16:
        return None
    out = row_grad.new_empty(())
    vectors.store_scale_kernel[(1,)](
        row_grad, col_grad, out, row_grad.shape[0], col_grad.shape[0], BLOCK=1024, num_warps=8
    )
    return out
