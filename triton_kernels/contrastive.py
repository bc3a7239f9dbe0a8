"""The contrastive losses in Triton; the kernels are in contrastive_lse.py, contrastive_sigmoid.py and contrastive_vector_kernels.py.

Forward: 2 B T D operations, tiles of logits live in registers only. Backward: the tiles again, their gradient rounded to the
features' dtype in blocks within a workspace, and two plain matrix products per block with float32 sums.

`info_nce` of up to SMALL_BATCH pairs (of bfloat16 features in aligned rows) takes two launches forward and four backward and
multiplies four times, where two dense cross-entropies over logits in memory take some thirty launches and six products: no
batch is so small that logits in memory would serve it better. Nothing here looks at data on the host, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import contrastive_config as config
from . import contrastive_lse as lse
from . import contrastive_sigmoid as sigmoid
from . import contrastive_vector_kernels as vectors
from .contrastive_config import PAIRS, cdiv
from .contrastive_feature_gradients import Block, GradientBlocks
from .contrastive_lse_row_blocks import RowBlocks
from .contrastive_residuals import Residuals


def contrastive_lse(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse` (see cfmvit.ops.contrastive.reference) of bf16, fp16 or fp32 features."""
    blocks = RowBlocks(image, text, logit_scale, label_offset, image_groups, text_groups)
    images, texts, count = blocks.images, blocks.texts, len(blocks.ranges)
    image_shift, image_sum = blocks.vector(images), blocks.vector(images)
    text_shift, text_sum = blocks.vector(texts), blocks.vector(texts)
    image_max, text_max = (blocks.vector(n if blocks.with_max else 0) for n in (images, texts))
    one = count == 1
    col_shift, col_sum = (blocks.vector(0 if one else count, texts) for _ in range(2))
    col_max = blocks.vector(count if blocks.with_max and not one else 0, texts)
    for i, (first, end) in enumerate(blocks.ranges):
        partial, rows = blocks.launch(first, end), slice(first, end)
        cols = (text_shift, text_sum) if one else (col_shift[i], col_sum[i])
        merged = (image_shift[rows], image_sum[rows], partial.col_shift, partial.col_sum, *cols)
        _merge(logit_scale, partial.row_shift, partial.row_sum, *merged, last=one)
        if blocks.with_max:
            to = text_max if one else col_max[i]
            _merge_max(logit_scale, partial.row_max, image_max[rows], partial.col_max, to, last=one)
        del partial, merged  # before the next block has its own
    if not one:
        none = blocks.vector(0, 0)
        no_rows = (none, none, none[0:], none[0:])
        _merge(logit_scale, *no_rows, col_shift, col_sum, text_shift, text_sum, last=True)
        if blocks.with_max:
            _merge_max(logit_scale, none, none, col_max, text_max, last=True)
    return blocks.positive, image_shift, image_sum, text_shift, text_sum, image_max, text_max


def contrastive_lse_backward(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_shift: Tensor,
    text_shift: Tensor,
    grad_positive: Tensor,
    grad_image_sum: Tensor,
    grad_text_sum: Tensor,
    needs_image: bool,
    needs_text: bool,
    full_precision: bool = False,
    grad: Tensor | None = None,
    grad_scale_of_pairs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse_backward`, with `grad_scale_of_pairs` () added, times `grad` (), if given."""
    image, text = image.contiguous(), text.contiguous()
    image_shift, text_shift, grad_positive, row_grad, col_grad = (
        x.float().contiguous()
        for x in (image_shift, text_shift, grad_positive, grad_image_sum, grad_text_sum)
    )
    store_scale = _store_scale(image.dtype, row_grad, col_grad)
    blocks = GradientBlocks(image, text, label_offset, "backward")
    partial, grad_scale = blocks.partial_sums(), torch.empty_like(logit_scale)
    residuals = Residuals(blocks, needs_image, needs_text)

    def launch(block: Block, grad_logit: Tensor | TensorDescriptor | None, stride: int) -> None:
        lse.lse_bwd_kernel[(block.programs,)](
            *blocks.matrices, logit_scale, image_shift, text_shift, row_grad, col_grad,
            store_scale, grad_logit, stride, partial[block.first_program :], *residuals.arguments, *block[:4], image.shape[1],
            blocks.first_pair, *blocks.shape, **blocks.options,
        )  # fmt: skip

    dtype, totals = torch.float32 if full_precision else image.dtype, [(partial, grad_scale)]
    grads = blocks.run(
        launch, grad_positive, logit_scale, store_scale, needs_image, needs_text, dtype, totals, grad, grad_scale_of_pairs,
        residuals,
    )  # fmt: skip
    return *grads, grad_scale


def info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int,
    image_weight: float,
    text_weight: float,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::info_nce`."""
    (images, _), texts = image.shape, text.shape[0]
    if images == texts <= config.SMALL_BATCH:
        blocks = RowBlocks(image, text, logit_scale, label_offset)
        partial = blocks.launch(0, images)
        image_shift, text_shift, *grads = (blocks.vector(images) for _ in range(5))
        loss, grad_scale = blocks.vector(), torch.empty_like(logit_scale)
        vectors.merge_pair_loss_kernel[(1,)](
            blocks.positive, logit_scale, *partial[:4], image_shift, text_shift, loss, *grads, grad_scale,
            *_weights(image_weight, text_weight, images, mean), partial.row_sum.shape[0], partial.col_sum.shape[0],
            images, BLOCK_P=32, BLOCK=512, num_warps=16,
        )  # fmt: skip
        return loss, image_shift, text_shift, *grads, grad_scale
    positive, image_shift, image_sum, text_shift, text_sum, *_ = contrastive_lse(
        image, text, logit_scale, label_offset
    )
    of_pairs = positive, image_shift, image_sum, text_shift[:images], text_sum[:images]
    loss, *grads, grad_scale = pair_loss(*of_pairs, logit_scale, image_weight, text_weight, mean)
    if texts != images:  # without weight, then
        grads[2] = torch.zeros_like(text_sum)
    return loss, image_shift, text_shift, *grads, grad_scale


def info_nce_backward(
    grad: Tensor,
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int,
    image_shift: Tensor,
    text_shift: Tensor,
    grad_positive: Tensor,
    grad_image_sum: Tensor,
    grad_text_sum: Tensor,
    grad_scale: Tensor,
    needs_image: bool,
    needs_text: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cfmvit::info_nce_backward`."""
    return contrastive_lse_backward(
        image, text, logit_scale, label_offset, image_shift, text_shift, grad_positive, grad_image_sum, grad_text_sum,
        needs_image, needs_text, grad=grad, grad_scale_of_pairs=grad_scale,
    )  # fmt: skip


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    label_offset: int | None,
    needs_image: bool,
    needs_text: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::sigmoid_loss` (see cfmvit.ops.contrastive.reference) and its gradients in one loop over the logits."""
    image, text = image.contiguous(), text.contiguous()
    blocks = GradientBlocks(image, text, label_offset, "sigmoid")
    sums = [blocks.partial_sums() for _ in range(3)]
    pair_grad = image.new_empty(0 if label_offset is None else image.shape[0], dtype=torch.float32)
    # A sigmoid is at most 1: float16 needs no more than a constant to keep small ones out of its subnormals.
    store_scale = image.new_full((), 2.0**13, dtype=torch.float32) if image.dtype == torch.float16 else None

    def launch(block: Block, grad_logit: Tensor | TensorDescriptor | None, stride: int) -> None:
        partial = (x[block.first_program :] for x in sums)
        sigmoid.sigmoid_kernel[(block.programs,)](
            *blocks.matrices, image, text, logit_scale, logit_bias, store_scale, grad_logit, stride, pair_grad, *partial,
            *block[:4], image.shape[1], blocks.first_pair, PAIRS=PAIRS, **blocks.options,
        )  # fmt: skip

    loss, *grad_scalars = (x.new_empty(()) for x in sums)
    totals = list(zip(sums, (loss, *grad_scalars), strict=True))
    grads = blocks.run(
        launch, pair_grad, logit_scale, store_scale, needs_image, needs_text, torch.float32, totals
    )
    return loss, *grads, *grad_scalars


def pair_loss(
    positive: Tensor,
    image_shift: Tensor,
    image_sum: Tensor,
    text_shift: Tensor,
    text_sum: Tensor,
    logit_scale: Tensor,
    image_weight: float,
    text_weight: float,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::pair_loss`."""
    loss, rows, grad_scale = positive.new_empty(()), positive.shape[0], torch.empty_like(logit_scale)
    grads = [torch.empty_like(positive) for _ in range(3)]
    given = (x.contiguous() for x in (positive, image_shift, image_sum, text_shift, text_sum))
    vectors.pair_loss_kernel[(1,)](
        *given, logit_scale, loss, *grads, grad_scale,
        *_weights(image_weight, text_weight, rows, mean), rows, BLOCK=2048, num_warps=8,
    )  # fmt: skip
    return loss, *grads, grad_scale


def _weights(image_weight: float, text_weight: float, rows: int, mean: bool) -> tuple[float, float]:
    count = rows if mean else 1
    return image_weight / count, text_weight / count


def _merge(
    logit_scale: Tensor, row_shifts: Tensor, row_sums: Tensor, row_shift: Tensor, row_sum: Tensor,
    col_shifts: Tensor, col_sums: Tensor, col_shift: Tensor, col_sum: Tensor, *, last: bool,
) -> None:  # fmt: skip
    """Merge partial sums (partials, n) of rows and of columns; the columns' for the last time, or with more to follow."""
    sizes = row_shifts.shape[0], row_shift.shape[0], col_shifts.shape[0], col_shift.shape[0]
    vectors.merge_kernel[(cdiv(sizes[1], 64) + cdiv(sizes[3], 64),)](
        logit_scale, row_shifts, row_sums, row_shift, row_sum, col_shifts, col_sums, col_shift, col_sum, *sizes,
        COLS_LAST=last, BLOCK_P=32, BLOCK=64,
    )  # fmt: skip


def _merge_max(
    logit_scale: Tensor,
    row_maxima: Tensor,
    row_max: Tensor,
    col_maxima: Tensor,
    col_max: Tensor,
    *,
    last: bool,
) -> None:
    sizes = row_maxima.shape[0], row_max.shape[0], col_maxima.shape[0], col_max.shape[0]
    vectors.merge_max_kernel[(cdiv(sizes[1], 64) + cdiv(sizes[3], 64),)](
        logit_scale, row_maxima, row_max, col_maxima, col_max, *sizes, COLS_LAST=last, BLOCK_P=32, BLOCK=64
    )


def _store_scale(dtype: torch.dtype, row_grad: Tensor, col_grad: Tensor) -> Tensor | None:
    """Bring float16 gradients by logits to at most 2^14, on the device; the other dtypes have range enough."""
    if dtype != torch.float16:
        return None
    out = row_grad.new_empty(())
    vectors.store_scale_kernel[(1,)](
        row_grad, col_grad, out, row_grad.shape[0], col_grad.shape[0], BLOCK=1024, num_warps=8
    )
    return out
