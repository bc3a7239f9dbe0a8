"""Tile kernels of contrastive_lse and its backward; letters, prefixes and quarters as in contrastive_tiles.py.

Logits are kept in units of log 2.
"""

import triton
import triton.language as tl

from .contrastive_tiles import origin_of_program, similarities, store_grad
from .contrastive_vector_kernels import LOG2E, NEG_INF, pair_similarities

# Smallest sum, relative to the quarter's largest term, that stands: terms below 2^-126 vanish, 2^-19 of it at most.
LEAST_SUM = tl.constexpr(2.0**-100)
# Powers of two a tile can span in the backward with one exponential per logit.
MOST_SPREAD = tl.constexpr(220.0)


@triton.jit
def _finite(b_max):
    """Shift for an exponential: zero where there is nothing to shift."""
    return tl.where(b_max == NEG_INF, 0.0, b_max)


@triton.jit
def _shifted_sum(b_logit, AXIS: tl.constexpr):
    """Sum of 2^x along an axis as shift and sum, each row or column with its own shift."""
    b_max = tl.max(b_logit, AXIS)
    return b_max, tl.sum(tl.exp2(b_logit - tl.expand_dims(_finite(b_max), AXIS)), AXIS)


@triton.jit
def _lse_tile(
    image, text, logit_scale, image_groups, text_groups, row_part, col_part, row_max_part, col_max_part,
    first_row, end_row, strip, texts, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, WITH_MAX: tl.constexpr,
):  # fmt: skip
    QUARTER: tl.constexpr = BLOCK_N // 4
    row, col = origin_of_program(first_row, end_row, 0, texts, BLOCK_M, BLOCK_N, GROUP_M)
    i_row, i_col = row + tl.arange(0, BLOCK_M), col + tl.arange(0, QUARTER)
    b_sims = similarities(
        image, text, row, col, end_row, texts, width, BLOCK_M, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN_D, PRECISION
    )  # fmt: skip
    scale = tl.load(logit_scale).to(tl.float32) * LOG2E
    o_row = (col // BLOCK_N).to(tl.int64) * strip + i_row - first_row
    o_col = ((row - first_row) // BLOCK_M).to(tl.int64) * texts + i_col
    m_row = i_row < end_row
    b_shift, b_sum = tl.full((BLOCK_M,), NEG_INF, tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    if WITH_MAX:
        b_row_group = tl.load(image_groups + i_row, mask=m_row, other=0)
        b_max = tl.full((BLOCK_M,), NEG_INF, tl.float32)
    for i in tl.static_range(4):
        i_part = i_col + i * QUARTER
        m_col = i_part < texts
        b_logit = tl.where(m_row[:, None] & m_col[None, :], b_sims[i] * scale, NEG_INF)
        if WITH_MAX:
            b_col_group = tl.load(text_groups + i_part, mask=m_col, other=0)
            b_other = tl.where(b_row_group[:, None] != b_col_group[None, :], b_logit, NEG_INF)
            tl.store(col_max_part + o_col + i * QUARTER, tl.max(b_other, 0), mask=m_col)
            b_max = tl.maximum(b_max, tl.max(b_other, 1))
        b_logit = tl.where(i_part[None, :] != i_row[:, None] + label_offset, b_logit, NEG_INF)
        shift = tl.max(b_logit)
        b_exp = tl.exp2(b_logit - _finite(shift))
        b_row, b_col = tl.sum(b_exp, 1), tl.sum(b_exp, 0)
        b_row_shift, b_col_shift = tl.zeros_like(b_row) + shift, tl.zeros_like(b_col) + shift
        least = tl.minimum(
            tl.min(tl.where(m_row, b_row, 1.0)[None, :]), tl.min(tl.where(m_col, b_col, 1.0)[None, :])
        )
        if least <= LEAST_SUM:
            b_row_shift, b_row = _shifted_sum(b_logit, 1)
            b_col_shift, b_col = _shifted_sum(b_logit, 0)
        tl.store(col_part + o_col + i * QUARTER, _finite(b_col_shift) + tl.log2(b_col), mask=m_col)
        b_last, b_shift = b_shift, tl.maximum(b_shift, b_row_shift)
        b_sum *= tl.exp2(b_last - _finite(b_shift))
        b_sum += b_row * tl.exp2(b_row_shift - _finite(b_shift))
    tl.store(row_part + o_row, _finite(b_shift) + tl.log2(b_sum), mask=m_row)
    if WITH_MAX:
        tl.store(row_max_part + o_row, b_max, mask=m_row)


@triton.jit(do_not_specialize=["first_row", "end_row", "label_offset"])
def lse_fwd_kernel(
    image_tiles, text_tiles, image, text, logit_scale,  # (B, D), (T, D), as descriptors and as pointers, ()
    image_groups, text_groups,  # (B,), (T,) int64; only with WITH_MAX
    positive,  # (B,): logits of the pairs
    row_part, col_part,  # (tiles_n, strip), (tiles_m, T): log2-sum-exps of the negatives of a tile's rows and columns
    row_max_part, col_max_part,  # the same shapes: largest logit among other groups
    first_row, end_row, strip, texts, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, PAIRS: tl.constexpr, WITH_MAX: tl.constexpr,
):  # fmt: skip
    """One tile of logits of the rows [first_row, end_row): its part of every row's and every column's sum.

    One exponential serves both: all logits are shifted by the largest negative of a quarter. Where that leaves too little
    of some row or column (features far from unit length, say), this quarter takes a shift for each.

    Programs beyond the tiles take PAIRS pairs each, in float32.
    """
    i_pairs = tl.program_id(0) - tl.cdiv(end_row - first_row, BLOCK_M) * tl.cdiv(texts, BLOCK_N)
    if i_pairs < 0:
        _lse_tile(
            image_tiles, text_tiles, logit_scale, image_groups, text_groups, row_part, col_part, row_max_part,
            col_max_part, first_row, end_row, strip, texts, width, label_offset,
            BLOCK_M, BLOCK_N, BLOCK_D, GROUP_M, DESCRIPTORS, EVEN_D, PRECISION, WITH_MAX,
        )  # fmt: skip
    else:
        i_row = first_row + i_pairs * PAIRS + tl.arange(0, PAIRS)
        b_sim = pair_similarities(image, text, i_row, end_row, width, label_offset, PAIRS, 128)
        tl.store(positive + i_row, b_sim * tl.load(logit_scale).to(tl.float32), mask=i_row < end_row)


@triton.jit
def _log_sum_range(lse, i_x, end):
    """Least and largest log-sum-exp of those that have negatives, in units of log 2."""
    b_x = tl.load(lse + i_x, mask=i_x < end, other=NEG_INF) * LOG2E
    return tl.min(tl.where(b_x == NEG_INF, float("inf"), b_x), 0), tl.max(b_x, 0)


@triton.jit
def _lse_bwd_tile(
    image, text, logit_scale, row_lse, col_lse, row_grad, col_grad, store_scale,
    grad_logit, grad_stride, grad_scale_part, first_row, end_row, first_col, end_col, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    QUARTER: tl.constexpr = BLOCK_N // 4
    row, col = origin_of_program(first_row, end_row, first_col, end_col, BLOCK_M, BLOCK_N, GROUP_M)
    i_row = row + tl.arange(0, BLOCK_M)
    row_low, row_high = _log_sum_range(row_lse, i_row, end_row)
    col_low, col_high = _log_sum_range(col_lse, col + tl.arange(0, BLOCK_N), end_col)
    low, high = tl.minimum(row_low, col_low), tl.maximum(row_high, col_high)
    b_sims = similarities(
        image, text, row, col, end_row, end_col, width, BLOCK_M, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN_D, PRECISION
    )  # fmt: skip
    scale = tl.load(logit_scale).to(tl.float32) * LOG2E
    b_row = tl.load(row_lse + i_row, mask=i_row < end_row, other=NEG_INF) * LOG2E
    b_row = tl.where(b_row == NEG_INF, low, b_row)  # without negatives there is no gradient
    b_row_grad = tl.load(row_grad + i_row, mask=i_row < end_row, other=0.0)
    # Keeps u and v under 2^100, and loses only terms under 2^-26 of their sum; a lone pair has no negatives.
    shift = tl.where(low == float("inf"), 0.0, low + 100.0)
    b_u = b_row_grad * tl.exp2(shift - b_row)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    for i in tl.static_range(4):
        i_col = col + i * QUARTER + tl.arange(0, QUARTER)
        b_col = tl.load(col_lse + i_col, mask=i_col < end_col, other=NEG_INF) * LOG2E
        b_col = tl.where(b_col == NEG_INF, low, b_col)
        b_col_grad = tl.load(col_grad + i_col, mask=i_col < end_col, other=0.0)
        b_logit = b_sims[i] * scale
        if high - low < MOST_SPREAD:
            b_v = b_col_grad * tl.exp2(shift - b_col)
            b_shift = tl.where(i_col < end_col, shift, float("inf"))  # 2^-inf: nothing beyond the last column
            b_grad = tl.exp2(b_logit - b_shift[None, :]) * (b_u[:, None] + b_v[None, :])
        else:
            b_grad = b_row_grad[:, None] * tl.exp2(b_logit - b_row[:, None])
            b_grad += b_col_grad[None, :] * tl.exp2(b_logit - b_col[None, :])
            b_grad = tl.where((i_col < end_col)[None, :], b_grad, 0.0)
        b_grad = tl.where(i_col[None, :] != i_row[:, None] + label_offset, b_grad, 0.0)
        b_sum += tl.sum(b_grad * b_sims[i], 1)
        if grad_logit is not None:
            store_grad(
                grad_logit, grad_stride, b_grad, store_scale, row - first_row, col - first_col + i * QUARTER,
                end_row - first_row, end_col - first_col, DESCRIPTORS, PRECISION,
            )  # fmt: skip
    tl.store(grad_scale_part + tl.program_id(0), tl.sum(tl.where(i_row < end_row, b_sum, 0.0)[None, :]))


@triton.jit(do_not_specialize=["first_row", "end_row", "first_col", "end_col", "label_offset"])
def lse_bwd_kernel(
    image_tiles, text_tiles, image, text, logit_scale,  # (B, D), (T, D), as descriptors and as pointers, ()
    row_lse, col_lse, row_grad, col_grad, pair_grad,  # (B,), (T,), (B,), (T,), (B,): natural log-sum-exps, gradients
    store_scale,  # () or None: what the gradients are multiplied by before they are rounded
    grad_logit, grad_stride, grad_scale_part,  # a block in the features' dtype or None, elements of a row, (programs,)
    first_row, end_row, first_col, end_col, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss by one tile of logits, zero for the pairs: those would drown the rest when rounded.

    d loss / d l[i, j] = row_grad[i] exp(l - row_lse[i]) + col_grad[j] exp(l - col_lse[j]), by one exponential:
    2^(l - m) (u[i] + v[j]) with u[i] = row_grad[i] 2^(m - row_lse[i]), unless the tile's log-sum-exps lie too far apart.

    Programs beyond the tiles take PAIRS pairs each, in float32: what they add to the gradient of the scale.
    """
    i_pairs = tl.program_id(0) - tl.cdiv(end_row - first_row, BLOCK_M) * tl.cdiv(end_col - first_col, BLOCK_N)
    if i_pairs < 0:
        _lse_bwd_tile(
            image_tiles, text_tiles, logit_scale, row_lse, col_lse, row_grad, col_grad, store_scale,
            grad_logit, grad_stride, grad_scale_part, first_row, end_row, first_col, end_col, width, label_offset,
            BLOCK_M, BLOCK_N, BLOCK_D, GROUP_M, DESCRIPTORS, EVEN_D, PRECISION,
        )  # fmt: skip
    else:
        i_row = first_row + i_pairs * PAIRS + tl.arange(0, PAIRS)
        b_sim = pair_similarities(image, text, i_row, end_row, width, label_offset, PAIRS, 128)
        b_grad = tl.load(pair_grad + i_row, mask=i_row < end_row, other=0.0)
        tl.store(grad_scale_part + tl.program_id(0), tl.sum(b_sim * b_grad, 0))
