"""Tile kernels of contrastive_lse and its backward; letters, prefixes and quarters as in contrastive_tiles.py.

Exponents are (similarity - shift) * gain, in units of log 2: the difference is taken before anything is rounded at the size of a
logit. Here and in partial sums similarities have the sign that makes the largest logit the largest similarity.
"""

import triton
import triton.language as tl

from .contrastive_tiles import eighths, is_plain, origin_of_program, pinned, similarities, store_grad
from .contrastive_vector_kernels import NEG_INF, finite, sign_and_gain

# Largest shift, in units of log 2, at which rounding a similarity otherwise than the shift was makes no probability of two.
MOST_SHIFT = tl.constexpr(2.0**17)


@triton.jit
def _terms(b_x, b_shift, gain):
    return tl.exp2((b_x - finite(b_shift)) * gain)


@triton.jit
def _negatives(b_sim, sign, positive, i_row, i_col, col, end_row, texts, label_offset):
    """A quarter from column col on: with the sign of the largest logits, -inf beyond the ends and at pairs.

    The pairs' similarities are stored: out of the tile, where they are summed like those that they are compared with.
    """
    i_pair = i_row + label_offset
    b_pair = tl.sum(tl.where(i_col[None, :] == i_pair[:, None], b_sim, 0.0), 1)
    m_pair = (i_row < end_row) & (i_pair >= col) & (i_pair < tl.minimum(col + i_col.shape[0], texts))
    tl.store(positive + i_row, b_pair, mask=m_pair)
    m_in = (i_row < end_row)[:, None] & (i_col < texts)[None, :]
    return tl.where(m_in & (i_col[None, :] != i_pair[:, None]), b_sim * sign, NEG_INF)


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

    Each is shifted by its own largest: of exponentials that serve both, the error would grow with how far those lie apart.
    """
    QUARTER: tl.constexpr = BLOCK_N // 4
    row, col = origin_of_program(first_row, end_row, 0, texts, BLOCK_M, BLOCK_N, GROUP_M)
    i_row, i_col = row + tl.arange(0, BLOCK_M), col + tl.arange(0, QUARTER)
    b_0, b_1, b_2, b_3 = similarities(
        image_tiles, text_tiles, row, col, end_row, texts, width, BLOCK_M, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN_D, PRECISION
    )  # fmt: skip
    sign, gain = sign_and_gain(logit_scale)
    o_row = (col // BLOCK_N).to(tl.int64) * rows + i_row - first_row
    o_col = ((row - first_row) // BLOCK_M).to(tl.int64) * texts + i_col
    m_row = i_row < end_row
    plain = is_plain(row, col, end_row, texts, label_offset, BLOCK_M, BLOCK_N)
    if WITH_MAX:
        b_group = tl.load(image_groups + i_row, mask=m_row, other=0)
        b_max = tl.full((BLOCK_M,), NEG_INF, tl.float32)
        b_sims = b_0, b_1, b_2, b_3
        for i in tl.static_range(4):
            m_col = i_col + i * QUARTER < texts
            b_col_group = tl.load(text_groups + i_col + i * QUARTER, mask=m_col, other=0)
            # The product with the sign is not that of below, which would be kept until then.
            b_other = (
                tl.where(b_group[:, None] != b_col_group[None, :], b_sims[i], -sign * float("inf")) * sign
            )
            if plain == 0:
                b_other = tl.where(m_row[:, None] & m_col[None, :], b_other, NEG_INF)
            tl.store(col_max_partial + o_col + i * QUARTER, tl.max(b_other, 0), mask=m_col)
            b_max = pinned(tl.maximum(b_max, tl.max(b_other, 1)))
        tl.store(row_max_partial + o_row, b_max, mask=m_row)
    if (plain == 0) | (sign < 0):
        b_0 = _negatives(b_0, sign, positive, i_row, i_col, col, end_row, texts, label_offset)
        b_1 = _negatives(
            b_1, sign, positive, i_row, i_col + QUARTER, col + QUARTER, end_row, texts, label_offset
        )
        b_2 = _negatives(
            b_2, sign, positive, i_row, i_col + 2 * QUARTER, col + 2 * QUARTER, end_row, texts, label_offset
        )
        b_3 = _negatives(
            b_3, sign, positive, i_row, i_col + 3 * QUARTER, col + 3 * QUARTER, end_row, texts, label_offset
        )
    b_sims = b_0, b_1, b_2, b_3
    b_row_shift = tl.max(tl.maximum(tl.maximum(b_0, b_1), tl.maximum(b_2, b_3)), 1)
    b_row_sum = tl.zeros((BLOCK_M, 8), tl.float32)
    for i in tl.static_range(4):
        b_row_sum = pinned(b_row_sum + eighths(_terms(b_sims[i], b_row_shift[:, None], gain)))
        b_col_shift = tl.max(b_sims[i], 0)
        b_col_sum = tl.sum(_terms(b_sims[i], b_col_shift[None, :], gain), 0)
        m_col = i_col + i * QUARTER < texts
        tl.store(col_shift_partial + o_col + i * QUARTER, b_col_shift, mask=m_col)
        tl.store(col_sum_partial + o_col + i * QUARTER, b_col_sum, mask=m_col)
    tl.store(row_shift_partial + o_row, b_row_shift, mask=m_row)
    tl.store(row_sum_partial + o_row, tl.sum(b_row_sum, 1), mask=m_row)


@triton.jit
def _grad(b_sim, b_shift, b_grad, gain, CAREFUL: tl.constexpr):
    """b_grad times probability, shift and grad being those of rows or of columns."""
    b_exponent = (b_sim - b_shift) * gain
    if CAREFUL:
        # Without negatives there is no gradient; no probability is much above one, even where another GPU found the shift.
        b_exponent = tl.where(tl.abs(b_shift) == float("inf"), NEG_INF, tl.minimum(b_exponent, 1.0))
    return b_grad * tl.exp2(b_exponent)


@triton.jit(
    do_not_specialize=["first_row", "end_row", "first_col", "end_col", "label_offset", "block_rows", "block_cols"]
)  # fmt: skip
def lse_bwd_kernel(
    image_tiles, text_tiles, logit_scale,  # (B, D), (T, D), as descriptors or as pointers, ()
    row_shift, col_shift, row_grad, col_grad,  # (B,), (T,), (B,), (T,): shifts, gradients of sums
    store_scale,  # () or None: what the gradients are multiplied by before they are rounded
    grad_logit, grad_stride, grad_scale_partial,  # a block in the features' dtype or None, elements of a row, (programs,)
    row_sums, row_residuals, col_sums, col_residuals,  # (tiles across, block_rows), (tiles down, block_cols) twice, or None
    first_row, end_row, first_col, end_col, width, label_offset, block_rows, block_cols,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss by one tile of logits, zero for the pairs: those would drown the rest when rounded.

    d loss / d logit[i, j] = row_grad[i] 2^((x - row_shift[i]) gain) + col_grad[j] 2^((x - col_shift[j]) gain): of one exponential
    for both, the error would grow with the distance of the shifts.
    """
    QUARTER: tl.constexpr = BLOCK_N // 4
    row, col = origin_of_program(first_row, end_row, first_col, end_col, BLOCK_M, BLOCK_N, GROUP_M)
    i_row, i_cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    sign, gain = sign_and_gain(logit_scale)
    gain *= sign
    b_row = tl.load(row_shift + i_row, mask=i_row < end_row, other=0.0)
    b_cols = tl.load(col_shift + i_cols, mask=i_cols < end_col, other=0.0)
    largest = tl.maximum(tl.max(tl.abs(b_row), 0), tl.max(tl.abs(b_cols), 0))
    plain = is_plain(row, col, end_row, end_col, label_offset, BLOCK_M, BLOCK_N)
    plain &= largest * tl.abs(gain) < MOST_SHIFT
    b_sims = similarities(
        image_tiles, text_tiles, row, col, end_row, end_col, width,
        BLOCK_M, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN_D, PRECISION,
    )  # fmt: skip
    b_row_grad = tl.load(row_grad + i_row, mask=i_row < end_row, other=0.0)
    b_scale = tl.zeros((BLOCK_M, 8), tl.float32)
    b_row_sum, b_row_residual = b_scale, b_scale
    for i in tl.static_range(4):
        i_col = col + i * QUARTER + tl.arange(0, QUARTER)
        if plain:
            i_aligned = tl.multiple_of(i_col, QUARTER)
            b_col, b_col_grad = tl.load(col_shift + i_aligned), tl.load(col_grad + i_aligned)
            b_grad = _grad(b_sims[i], b_row[:, None], b_row_grad[:, None], gain, False)
            b_grad += _grad(b_sims[i], b_col[None, :], b_col_grad[None, :], gain, False)
        else:
            b_col = tl.load(col_shift + i_col, mask=i_col < end_col, other=0.0)
            b_col_grad = tl.load(col_grad + i_col, mask=i_col < end_col, other=0.0)
            b_grad = _grad(b_sims[i], b_row[:, None], b_row_grad[:, None], gain, True)
            b_grad += _grad(b_sims[i], b_col[None, :], b_col_grad[None, :], gain, True)
            m_negative = (i_row < end_row)[:, None] & (i_col < end_col)[None, :]
            m_negative &= i_col[None, :] != i_row[:, None] + label_offset
            b_grad = tl.where(m_negative, b_grad, 0.0)
        b_scale = pinned(b_scale + eighths(b_grad * b_sims[i]))
        if grad_logit is not None:
            b_grad, b_residual = store_grad(
                grad_logit, grad_stride, b_grad, store_scale, row - first_row, col - first_col + i * QUARTER,
                end_row - first_row, end_col - first_col, DESCRIPTORS, PRECISION,
            )  # fmt: skip
            if row_sums is not None:
                b_row_sum = pinned(b_row_sum + eighths(b_grad))
                b_row_residual = pinned(b_row_residual + eighths(b_residual))
            if col_sums is not None:
                o_col = ((row - first_row) // BLOCK_M).to(tl.int64) * block_cols + i_col - first_col
                tl.store(col_sums + o_col, tl.sum(b_grad, 0), mask=i_col < end_col)
                tl.store(col_residuals + o_col, tl.sum(b_residual, 0), mask=i_col < end_col)
    if row_sums is not None:
        o_row = ((col - first_col) // BLOCK_N).to(tl.int64) * block_rows + i_row - first_row
        tl.store(row_sums + o_row, tl.sum(b_row_sum, 1), mask=i_row < end_row)
        tl.store(row_residuals + o_row, tl.sum(b_row_residual, 1), mask=i_row < end_row)
    tl.store(grad_scale_partial + tl.program_id(0), tl.sum(b_scale))
