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

from . import contrastive_lse as lse
from . import contrastive_sigmoid as sigmoid
from . import contrastive_vector_kernels as vectors
from .contrastive_config import cdiv
from .contrastive_feature_gradients import Block, Sweep
from .contrastive_lse_row_blocks import Strips

SMALL_BATCH = 4096  # pairs whose sums one program merges, which saves a launch


def contrastive_lse(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse` (see cfmvit.ops.contrastive.reference) of bf16, fp16 or fp32 features."""
    strips = Strips(image, text, logit_scale, label_offset, image_groups, text_groups)
    images, texts, with_max = strips.images, strips.texts, strips.with_max
    image_lse, text_lse = strips.vector(images), strips.vector(texts)
    image_max, text_max = strips.vector(images if with_max else 0), strips.vector(texts if with_max else 0)
    count = len(strips.ranges)
    one = count == 1
    col_lse, col_max = strips.vector(count, texts), strips.vector(count if with_max else 0, texts)
    for i, (first, end) in enumerate(strips.ranges):
        parts = strips.launch(first, end)
        _merge(parts.rows, image_lse[first:end], parts.cols, text_lse if one else col_lse[i], one)
        if with_max:
            to = text_max if one else col_max[i]
            _merge(parts.row_max, image_max[first:end], parts.col_max, to, one, is_max=True)
    if not one:
        _merge(None, None, col_lse, text_lse, True)
        if with_max:
            _merge(None, None, col_max, text_max, True, is_max=True)
    return strips.positive, image_lse, text_lse, image_max, text_max


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
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse_backward`, times `grad` () if given."""
    image, text = image.contiguous(), text.contiguous()
    grad_positive, row_grad, col_grad = (
        x.float().contiguous() for x in (grad_positive, grad_image_lse, grad_text_lse)
    )
    store_scale = _store_scale(image.dtype, row_grad, col_grad)
    sweep = Sweep(image, text, label_offset, "backward")
    parts, grad_scale = sweep.parts(), torch.empty_like(logit_scale)

    def launch(block: Block, grad_logit: Tensor | TensorDescriptor | None, stride: int) -> None:
        lse.lse_bwd_kernel[(block.programs,)](
            *sweep.matrices, image, text, logit_scale, image_lse, text_lse, row_grad, col_grad, grad_positive,
            store_scale, grad_logit, stride, parts[block.first_program :], *block[:4], image.shape[1],
            sweep.first_pair, **sweep.options,
        )  # fmt: skip

    dtype, totals = torch.float32 if full_precision else image.dtype, [(parts, grad_scale)]
    grads = sweep.run(
        launch, grad_positive, logit_scale, store_scale, needs_image, needs_text, dtype, totals, grad
    )
    return *grads, grad_scale


def info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int,
    image_weight: float,
    text_weight: float,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::info_nce`."""
    (images, _), texts = image.shape, text.shape[0]
    if images == texts <= SMALL_BATCH:
        strips = Strips(image, text, logit_scale, label_offset)
        parts = strips.launch(0, images)
        image_lse, text_lse, *grads = (strips.vector(images) for _ in range(5))
        loss = strips.vector()
        vectors.merge_pair_loss_kernel[(1,)](
            strips.positive, parts.rows, parts.cols, image_lse, text_lse, loss, *grads,
            *_weights(image_weight, text_weight, images, mean), len(parts.rows), len(parts.cols), images,
            BLOCK_P=32, BLOCK=512, num_warps=16,
        )  # fmt: skip
        return loss, image_lse, text_lse, *grads
    positive, image_lse, text_lse, *_ = contrastive_lse(image, text, logit_scale, label_offset)
    loss, *grads = pair_loss(positive, image_lse, text_lse[:images], image_weight, text_weight, mean)
    if texts != images:  # without weight, then
        grads[2] = torch.zeros_like(text_lse)
    return loss, image_lse, text_lse, *grads


def info_nce_backward(grad: Tensor, *inputs: Tensor | int | bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cfmvit::info_nce_backward`."""
    return contrastive_lse_backward(*inputs, grad=grad)


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    label_offset: int | None,
    needs_image: bool,
    needs_text: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::sigmoid_loss` (see cfmvit.ops.contrastive.reference) and its gradients in one sweep."""
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
            *block[:4], image.shape[1], sweep.first_pair, **sweep.options,
        )  # fmt: skip

    loss, *grad_scalars = (x.new_empty(()) for x in sums)
    totals = list(zip(sums, (loss, *grad_scalars), strict=True))
    grads = sweep.run(
        launch, pair_grad, logit_scale, store_scale, needs_image, needs_text, torch.float32, totals
    )
    return loss, *grads, *grad_scalars


def pair_loss(
    positive: Tensor, image_lse: Tensor, text_lse: Tensor, image_weight: float, text_weight: float, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::pair_loss`."""
    loss, grads, rows = (
        positive.new_empty(()),
        [torch.empty_like(positive) for _ in range(3)],
        positive.shape[0],
    )
    vectors.pair_loss_kernel[(1,)](
        *(x.contiguous() for x in (positive, image_lse, text_lse)), loss, *grads,
        *_weights(image_weight, text_weight, rows, mean), rows, BLOCK=2048, num_warps=8,
    )  # fmt: skip
    return loss, *grads


def _weights(image_weight: float, text_weight: float, rows: int, mean: bool) -> tuple[float, float]:
    count = rows if mean else 1
    return image_weight / count, text_weight / count


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


def _store_scale(dtype: torch.dtype, row_grad: Tensor, col_grad: Tensor) -> Tensor | None:
    """Bring float16 gradients by logits to at most 2^14, on the device; the other dtypes have range enough."""
    if dtype != torch.float16:
        return None
    out = row_grad.new_empty(())
    vectors.store_scale_kernel[(1,)](
        row_grad, col_grad, out, row_grad.shape[0], col_grad.shape[0], BLOCK=1024, num_warps=8
    )
    return out
