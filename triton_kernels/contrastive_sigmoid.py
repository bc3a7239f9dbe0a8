"""Tile kernel of sigmoid_loss; letters, prefixes and quarters as in contrastive_tiles.py."""

import triton
import triton.language as tl

from .contrastive_tiles import eighths, is_plain, origin_of_program, pinned, similarities, store_grad
from .contrastive_vector_kernels import NEG_INF, pair_similarities, softplus


@triton.jit
def _sigmoid_tile(
    image, text, logit_scale, logit_bias, store_scale, grad_logit, grad_stride,
    loss_partial, grad_scale_partial, grad_bias_partial, first_row, end_row, first_col, end_col, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    QUARTER: tl.constexpr = BLOCK_N // 4
    row, col = origin_of_program(first_row, end_row, first_col, end_col, BLOCK_M, BLOCK_N, GROUP_M)
    i_row = row + tl.arange(0, BLOCK_M)
    b_sims = similarities(
        image, text, row, col, end_row, end_col, width, BLOCK_M, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN_D, PRECISION
    )  # fmt: skip
    plain = is_plain(row, col, end_row, end_col, label_offset, BLOCK_M, BLOCK_N)
    scale, bias = tl.load(logit_scale).to(tl.float32), tl.load(logit_bias).to(tl.float32)
    b_loss_sum = tl.zeros((BLOCK_M, 8), tl.float32)
    b_scale_sum, b_bias_sum = b_loss_sum, b_loss_sum
    for i in tl.static_range(4):
        b_logit = b_sims[i] * scale + bias
        if plain == 0:
            i_col = col + i * QUARTER + tl.arange(0, QUARTER)
            m_negative = (i_row < end_row)[:, None] & (i_col < end_col)[None, :]
            m_negative &= i_col[None, :] != i_row[:, None] + label_offset
            b_logit = tl.where(m_negative, b_logit, NEG_INF)
        b_loss, b_grad = softplus(b_logit)
        b_loss_sum = pinned(b_loss_sum + eighths(b_loss))
        b_scale_sum = pinned(b_scale_sum + eighths(b_grad * b_sims[i]))
        b_bias_sum = pinned(b_bias_sum + eighths(b_grad))
        if grad_logit is not None:
            store_grad(
                grad_logit, grad_stride, b_grad, store_scale, row - first_row, col - first_col + i * QUARTER,
                end_row - first_row, end_col - first_col, DESCRIPTORS, PRECISION,
            )  # fmt: skip
    tl.store(loss_partial + tl.program_id(0), tl.sum(b_loss_sum))
    tl.store(grad_scale_partial + tl.program_id(0), tl.sum(b_scale_sum))
    tl.store(grad_bias_partial + tl.program_id(0), tl.sum(b_bias_sum))


@triton.jit(do_not_specialize=["first_row", "end_row", "first_col", "end_col", "label_offset"])
def sigmoid_kernel(
    image_tiles, text_tiles, image, text,  # (B, D), (T, D), as descriptors and as pointers
    logit_scale, logit_bias, store_scale,  # (), (), () or None
    grad_logit, grad_stride, pair_grad,  # a block in the features' dtype or None, elements of a row, (B,)
    loss_partial, grad_scale_partial, grad_bias_partial,  # (programs,)
    first_row, end_row, first_col, end_col, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Loss softplus(l) and gradient sigmoid(l) of one tile of logits, the pairs left out.

    Programs beyond the tiles take PAIRS pairs each, in float32: loss softplus(-l), gradient -sigmoid(-l).
    """
    i_pairs = tl.program_id(0) - tl.cdiv(end_row - first_row, BLOCK_M) * tl.cdiv(end_col - first_col, BLOCK_N)
    if i_pairs < 0:
        _sigmoid_tile(
            image_tiles, text_tiles, logit_scale, logit_bias, store_scale, grad_logit, grad_stride,
            loss_partial, grad_scale_partial, grad_bias_partial, first_row, end_row, first_col, end_col, width, label_offset,
            BLOCK_M, BLOCK_N, BLOCK_D, GROUP_M, DESCRIPTORS, EVEN_D, PRECISION,
        )  # fmt: skip
    else:
        i_row = first_row + i_pairs * PAIRS + tl.arange(0, PAIRS)
        m_row = i_row < end_row
        b_sim = pair_similarities(image, text, i_row, end_row, width, label_offset, PAIRS, 128)
        scale = tl.load(logit_scale).to(tl.float32)
        b_logit = b_sim * scale + tl.load(logit_bias).to(tl.float32)
        b_loss, b_grad = softplus(-b_logit)
        b_loss, b_grad = tl.where(m_row, b_loss, 0.0), tl.where(m_row, -b_grad, 0.0)
        tl.store(pair_grad + i_row, b_grad * scale, mask=m_row)
        tl.store(loss_partial + tl.program_id(0), tl.sum(b_loss, 0))
        tl.store(grad_scale_partial + tl.program_id(0), tl.sum(b_grad * b_sim, 0))
        tl.store(grad_bias_partial + tl.program_id(0), tl.sum(b_grad, 0))
