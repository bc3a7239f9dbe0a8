"""A second form of contrastive_lse_backward, kept to be timed beside the first: the gradient of a block of rows stays in registers.

One program owns BLOCK_M rows of one tower and walks over the other: logits, their gradient, and its product with the same block of
features, with nothing of the size B x T anywhere. Each tower needs a walk of its own, so that the two together multiply four times
where blocks in a workspace multiply three times; and the sums of a row take as many registers as it has columns, so that widths
end at 512. There, on compute capability 9.0, 64 rows fill the registers and leave room for 32 columns: the logits get matrix
instructions of 16 columns, far below the rate of those of 128 and more. For bfloat16 features (float32 ones serve Triton's
interpreter).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cfmvit.triton_kernels import contrastive_vector_kernels as vectors
from cfmvit.triton_kernels.contrastive_config import PAIRS, aligned, cdiv, first_pair
from cfmvit.triton_kernels.contrastive_vector_kernels import LOG2E, NEG_INF, pair_similarities

BLOCKS = {64: (128, 128), 128: (128, 64), 256: (128, 64), 512: (64, 32)}  # rows and columns by width


@triton.jit
def _rows_tile(
    rows_tiles, cols_tiles, logit_scale, row_lse, col_lse, row_grad, col_grad, product, scale_part,
    rows, cols, pair_offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M
    i_row = row + tl.arange(0, BLOCK_M)
    scale = tl.load(logit_scale).to(tl.float32) * LOG2E
    b_rows = rows_tiles.load([row, 0])
    b_row_lse = tl.load(row_lse + i_row, mask=i_row < rows, other=NEG_INF) * LOG2E
    b_row_grad = tl.load(row_grad + i_row, mask=i_row < rows, other=0.0)
    b_product = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    for col in range(0, cols, BLOCK_N):
        i_col = col + tl.arange(0, BLOCK_N)
        b_cols = cols_tiles.load([col, 0])
        b_sim = tl.dot(b_rows, b_cols.T, input_precision="ieee")
        b_col_lse = tl.load(col_lse + i_col, mask=i_col < cols, other=NEG_INF) * LOG2E
        b_col_grad = tl.load(col_grad + i_col, mask=i_col < cols, other=0.0)
        b_logit = b_sim * scale
        b_grad = b_row_grad[:, None] * tl.exp2(b_logit - b_row_lse[:, None])
        b_grad += b_col_grad[None, :] * tl.exp2(b_logit - b_col_lse[None, :])
        m_in = (i_row < rows)[:, None] & (i_col < cols)[None, :]
        b_grad = tl.where(m_in & (i_col[None, :] != i_row[:, None] + pair_offset), b_grad, 0.0)
        if scale_part is not None:
            b_sum += tl.sum(b_grad * b_sim, 1)
        b_product = tl.dot(b_grad.to(b_cols.dtype), b_cols, b_product, input_precision="ieee")
    product.store([row, 0], b_product)
    if scale_part is not None:
        tl.store(scale_part + tl.program_id(0), tl.sum(b_sum, 0))


@triton.jit(do_not_specialize=["pair_offset"])
def rows_bwd_kernel(
    rows_tiles, cols_tiles, image, text, logit_scale,  # descriptors of (R, D), (C, D); (B, D), (T, D), ()
    row_lse, col_lse, row_grad, col_grad, pair_grad,  # (R,), (C,), (R,), (C,), (B,): natural log-sum-exps, gradients
    product, scale_part,  # descriptor of (R, D) in float32, (programs,) or None
    rows, cols, pair_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Product of the gradients by the logits of BLOCK_M rows with the features of all columns.

    Programs beyond the rows take PAIRS pairs each: what they add to the gradient of the scale.
    """
    i_pairs = tl.program_id(0) - tl.cdiv(rows, BLOCK_M)
    if i_pairs < 0:
        _rows_tile(
            rows_tiles, cols_tiles, logit_scale, row_lse, col_lse, row_grad, col_grad, product, scale_part,
            rows, cols, pair_offset, BLOCK_M, BLOCK_N, WIDTH,
        )  # fmt: skip
    elif scale_part is not None:
        i_row = i_pairs * PAIRS + tl.arange(0, PAIRS)
        b_sim = pair_similarities(image, text, i_row, rows, WIDTH, pair_offset, PAIRS, 64)
        b_grad = tl.load(pair_grad + i_row, mask=i_row < rows, other=0.0)
        tl.store(scale_part + tl.program_id(0), tl.sum(b_sim * b_grad, 0))


def register_backward(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_lse: Tensor,
    text_lse: Tensor,
    grad_positive: Tensor,
    grad_image_lse: Tensor,
    grad_text_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse_backward` of widths in BLOCKS, for both towers."""
    image, text = aligned(image.contiguous()), aligned(text.contiguous())
    (images, width), texts = image.shape, text.shape[0]
    block_m, block_n = BLOCKS[width]
    pairs = 0 if label_offset is None else images
    pair_programs = cdiv(pairs, PAIRS)
    scale_parts = image.new_empty(cdiv(images, block_m) + pair_programs, dtype=torch.float32)
    towers = (
        (image, text, image_lse, text_lse, grad_image_lse, grad_text_lse, scale_parts, first_pair(label_offset, text)),
        (text, image, text_lse, image_lse, grad_text_lse, grad_image_lse, None, -(label_offset or 0) if pairs else images),
    )  # fmt: skip
    products = []
    for rows, cols, *vectors_, parts, pair_offset in towers:
        product = torch.empty_like(rows, dtype=torch.float32)
        block = lambda x, n: TensorDescriptor(x, list(x.shape), list(x.stride()), [n, width])
        programs = cdiv(len(rows), block_m) + (0 if parts is None else pair_programs)
        rows_bwd_kernel[(programs,)](
            block(rows, block_m), block(cols, block_n), image, text, logit_scale, *vectors_, grad_positive,
            block(product, block_m), parts, len(rows), len(cols), pair_offset,
            BLOCK_M=block_m, BLOCK_N=block_n, WIDTH=width, PAIRS=PAIRS, num_warps=8, num_stages=2,
        )  # fmt: skip
        products.append(product)
    grads, grad_scale = (torch.empty_like(image), torch.empty_like(text)), torch.empty_like(logit_scale)
    programs = cdiv(images, PAIRS) + cdiv(texts, PAIRS) + 1
    vectors.finish_kernel[(programs, cdiv(width, 128))](
        *products, image, text, grad_positive, logit_scale, None, None, *grads, *[scale_parts, grad_scale] * 3,
        0, images, texts, images, texts, width, first_pair(label_offset, text), len(scale_parts), BLOCK=PAIRS, BLOCK_D=128,
    )  # fmt: skip
    return *grads, grad_scale
