"""Tile kernels of contrastive_lse and its backward; letters, prefixes and quarters as in contrastive_tiles.py.

Exponents are (similarity - shift) * gain, in units of log 2: the difference is taken before anything is rounded at the size of a
logit. Here and in partial sums similarities have the sign that makes the largest logit the largest similarity.
"""

import triton
import triton.language as tl

from .contrastive_tiles import origin_of_program, similarities, store_grad
from .contrastive_vector_kernels import NEG_INF, finite, sign_and_gain

# Smallest sum, relative to the quarter's largest term, that stands: terms below 2^-126 vanish, 2^-19 of it at most.
LEAST_SUM = tl.constexpr(2.0**-100)
# Powers of two that a tile's shifts can span in the backward with one exponential per logit: its error grows with them.
MOST_SPREAD = tl.constexpr(64.0)


@triton.jit
def _shifted_sum(b_x, gain, AXIS: tl.constexpr):
    """Shift and sum of 2^((x - shift) * gain) along an axis, each row or column with its own shift."""
    b_max = tl.max(b_x, AXIS)
    return b_max, tl.sum(tl.exp2((b_x - tl.expand_dims(finite(b_max), AXIS)) * gain), AXIS)


@triton.jit(do_not_specialize=["first_row", "end_row", "label_offset"])
def lse_fwd_kernel(
    image_tiles, text_tiles, logit_scale,  # (B, D), (T, D), as descriptors or as pointers, ()
    image_groups, text_groups,  # (B,), (T,) int64; only with WITH_MAX
    positive,  # (B,): similarities of the pairs
    row_shift_partial, row_sum_partial,  # (tiles_n, rows): shifts and sums of the negatives of a tile's rows
    col_shift_partial, col_sum_partial,  # (tiles_m, T): and of its columns
    row_max_partial, col_max_partial,  # the same shapes: largest similarity among other groups
    first_row, end_row, rows, texts, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, WITH_MAX: tl.constexpr,
):  # fmt: skip
    """One tile of logits of the rows [first_row, end_row): its partial sum of every row and every column.

    One exponential serves both: all logits are shifted by the largest negative of a quarter. Where that leaves too little
    of some row or column (features far from unit length, say), this quarter takes a shift for each.
    """
    QUARTER: tl.constexpr = BLOCK_N // 4
    row, col = origin_of_program(first_row, end_row, 0, texts, BLOCK_M, BLOCK_N, GROUP_M)
    i_row, i_col = row + tl.arange(0, BLOCK_M), col + tl.arange(0, QUARTER)
    b_sims = similarities(
        image_tiles, text_tiles, row, col, end_row, texts, width, BLOCK_M, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN_D, PRECISION
    )  # fmt: skip
    sign, gain = sign_and_gain(logit_scale)
    o_row = (col // BLOCK_N).to(tl.int64) * rows + i_row - first_row
    o_col = ((row - first_row) // BLOCK_M).to(tl.int64) * texts + i_col
    m_row = i_row < end_row
    b_shift, b_sum = tl.full((BLOCK_M,), NEG_INF, tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    if WITH_MAX:
        b_row_group = tl.load(image_groups + i_row, mask=m_row, other=0)
        b_max = tl.full((BLOCK_M,), NEG_INF, tl.float32)
    for i in tl.static_range(4):
        i_quarter = i_col + i * QUARTER
        m_col = i_quarter < texts
        o_pair = i_row + label_offset - (col + i * QUARTER)  # column of a row's pair in this quarter
        m_pair = tl.arange(0, QUARTER)[None, :] == o_pair[:, None]
        if (row + label_offset < col + (i + 1) * QUARTER) & (
            row + label_offset + BLOCK_M > col + i * QUARTER
        ):
            # The pair's similarity out of the tile: summed like those it is compared with.
            m_here = m_row & (o_pair >= 0) & (o_pair < QUARTER) & (i_row + label_offset < texts)
            tl.store(positive + i_row, tl.sum(tl.where(m_pair, b_sims[i], 0.0), 1), mask=m_here)
        b_x = tl.where(m_row[:, None] & m_col[None, :], b_sims[i] * sign, NEG_INF)
        if WITH_MAX:
            b_col_group = tl.load(text_groups + i_quarter, mask=m_col, other=0)
            b_other = tl.where(b_row_group[:, None] != b_col_group[None, :], b_x, NEG_INF)
            tl.store(col_max_partial + o_col + i * QUARTER, tl.max(b_other, 0), mask=m_col)
            b_max = tl.maximum(b_max, tl.max(b_other, 1))
        b_x = tl.where(m_pair, NEG_INF, b_x)
        shift = tl.max(b_x)
        b_exp = tl.exp2((b_x - finite(shift)) * gain)
        b_row, b_col = tl.sum(b_exp, 1), tl.sum(b_exp, 0)
        b_row_shift, b_col_shift = tl.zeros_like(b_row) + shift, tl.zeros_like(b_col) + shift
        least = tl.minimum(
            tl.min(tl.where(m_row, b_row, 1.0)[None, :]), tl.min(tl.where(m_col, b_col, 1.0)[None, :])
        )
        if least <= LEAST_SUM:
            b_row_shift, b_row = _shifted_sum(b_x, gain, 1)
            b_col_shift, b_col = _shifted_sum(b_x, gain, 0)
        tl.store(col_shift_partial + o_col + i * QUARTER, b_col_shift, mask=m_col)
        tl.store(col_sum_partial + o_col + i * QUARTER, b_col, mask=m_col)
        b_last, b_shift = b_shift, tl.maximum(b_shift, b_row_shift)
        b_sum *= tl.exp2((b_last - finite(b_shift)) * gain)
        b_sum += b_row * tl.exp2((b_row_shift - finite(b_shift)) * gain)
    tl.store(row_shift_partial + o_row, b_shift, mask=m_row)
    tl.store(row_sum_partial + o_row, b_sum, mask=m_row)
    if WITH_MAX:
        tl.store(row_max_partial + o_row, b_max, mask=m_row)


@triton.jit
def _shifts(shift, sign, i_x, end):
    """Shifts with the sign of the largest logits; -inf beyond the end and without negatives."""
    return tl.where(i_x < end, tl.load(shift + i_x, mask=i_x < end, other=0.0) * sign, NEG_INF)


@triton.jit
def _least(b_shift):
    return tl.min(tl.where(b_shift == NEG_INF, float("inf"), b_shift), 0)


@triton.jit(
    do_not_specialize=["first_row", "end_row", "first_col", "end_col", "label_offset", "block_rows", "block_cols"]
)  # fmt: skip
def lse_bwd_kernel(
    image_tiles, text_tiles, logit_scale,  # (B, D), (T, D), as descriptors or as pointers, ()
    row_shift, col_shift, row_grad, col_grad,  # (B,), (T,), (B,), (T,): shifts, gradients of sums
    store_scale,  # () or None: what the gradients are multiplied by before they are rounded
    grad_logit, grad_stride, grad_scale_partial,  # a block in the features' dtype or None, elements of a row, (programs,)
    row_residuals, col_residuals,  # (quarters across, block_rows), (tiles down, block_cols), or None
    first_row, end_row, first_col, end_col, width, label_offset, block_rows, block_cols,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss by one tile of logits, zero for the pairs: those would drown the rest when rounded.

    d loss / d logit[i, j] = row_grad[i] 2^((x - row_shift[i]) gain) + col_grad[j] 2^((x - col_shift[j]) gain), by one exponential:
    2^((x - low) gain) (u[i] + v[j]) with u[i] = row_grad[i] 2^((low - row_shift[i]) gain), unless the shifts lie too far apart.

    The rounding residuals of a tile's rows and columns are summed: finish_kernel gives them to the pairs.
    """
    QUARTER: tl.constexpr = BLOCK_N // 4
    row, col = origin_of_program(first_row, end_row, first_col, end_col, BLOCK_M, BLOCK_N, GROUP_M)
    i_row, i_cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    sign, gain = sign_and_gain(logit_scale)
    b_row, b_cols = _shifts(row_shift, sign, i_row, end_row), _shifts(col_shift, sign, i_cols, end_col)
    low = tl.minimum(_least(b_row), _least(b_cols))
    low = tl.where(low == float("inf"), 0.0, low)  # a lone pair has no negatives
    spread = (tl.maximum(tl.max(b_row, 0), tl.max(b_cols, 0)) - low) * gain
    b_row = tl.where(b_row == NEG_INF, low, b_row)  # without negatives there is no gradient
    b_sims = similarities(
        image_tiles, text_tiles, row, col, end_row, end_col, width,
        BLOCK_M, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN_D, PRECISION,
    )  # fmt: skip
    b_row_grad = tl.load(row_grad + i_row, mask=i_row < end_row, other=0.0)
    b_u = b_row_grad * tl.exp2((low - b_row) * gain)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    for i in tl.static_range(4):
        i_col = col + i * QUARTER + tl.arange(0, QUARTER)
        b_col = _shifts(col_shift, sign, i_col, end_col)
        b_col = tl.where(b_col == NEG_INF, low, b_col)
        b_col_grad = tl.load(col_grad + i_col, mask=i_col < end_col, other=0.0)
        b_x = b_sims[i] * sign
        if spread < MOST_SPREAD:
            b_v = b_col_grad * tl.exp2((low - b_col) * gain)
            b_low = tl.where(i_col < end_col, low, float("inf"))  # 2^-inf: nothing beyond the last column
            b_grad = tl.exp2((b_x - b_low[None, :]) * gain) * (b_u[:, None] + b_v[None, :])
        else:
            # No probability is much above one, even where another GPU's forward found the shift.
            b_grad = b_row_grad[:, None] * tl.exp2(tl.minimum((b_x - b_row[:, None]) * gain, 1.0))
            b_grad += b_col_grad[None, :] * tl.exp2(tl.minimum((b_x - b_col[None, :]) * gain, 1.0))
            b_grad = tl.where((i_col < end_col)[None, :], b_grad, 0.0)
        b_grad = tl.where(i_col[None, :] != i_row[:, None] + label_offset, b_grad, 0.0)
        b_sum += tl.sum(b_grad * b_sims[i], 1)
        if grad_logit is not None:
            b_residual = store_grad(
                grad_logit, grad_stride, b_grad, store_scale, row - first_row, col - first_col + i * QUARTER,
                end_row - first_row, end_col - first_col, DESCRIPTORS, PRECISION,
            )  # fmt: skip
            if row_residuals is not None:
                o_row = ((col - first_col) // QUARTER + i).to(tl.int64) * block_rows + i_row - first_row
                tl.store(row_residuals + o_row, tl.sum(b_residual, 1), mask=i_row < end_row)
            if col_residuals is not None:
                o_col = ((row - first_row) // BLOCK_M).to(tl.int64) * block_cols + i_col - first_col
                b_residual = tl.where((i_row < end_row)[:, None], b_residual, 0.0)
                tl.store(col_residuals + o_col, tl.sum(b_residual, 0), mask=i_col < end_col)
    tl.store(grad_scale_partial + tl.program_id(0), tl.sum(tl.where(i_row < end_row, b_sum, 0.0)[None, :]))
