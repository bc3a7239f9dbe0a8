"""Tile kernels of the contrastive losses: similarities of a block of images and texts, and what is made of them.

Letters: B images, T texts, D width. Prefixes: i_ index, o_ offsets, m_ mask, p_ pointer, b_ block value. A row is an image, a
column a text; the pair of row i is column i + label_offset, beyond the last where there are no pairs. Logits are kept in units
of log 2. Nothing here is atomic.
"""

import triton
import triton.language as tl

from .contrastive_vectors import LOG2E, NEG_INF, pair_similarities, softplus, to_tf32

# Smallest sum, relative to the tile's largest term, of which float32 loses nothing: terms vanish below 2^-126.
LEAST_SUM = tl.constexpr(2.0**-100)
# Powers of two a tile can span in the backward with one exponential per logit.
MOST_SPREAD = tl.constexpr(220.0)


@triton.jit
def _tile_of_program(tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Order the tiles in groups of GROUP_M rows, so that programs running together share operands in the L2."""
    pid = tl.program_id(0)
    per_group = GROUP_M * tiles_n
    first = (pid // per_group) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    return first + (pid % per_group) % height, (pid % per_group) // height


@triton.jit
def _similarities(
    image, text, i_row, i_col, rows, texts, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products (BLOCK_M, BLOCK_N) in float32. Rows and columns beyond the end repeat the last one; callers mask them."""
    o_d = tl.arange(0, BLOCK_D)
    p_image = image + tl.minimum(i_row, rows - 1).to(tl.int64)[:, None] * width + o_d[None, :]
    p_text = text + tl.minimum(i_col, texts - 1).to(tl.int64)[None, :] * width + o_d[:, None]
    b_sim = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in range(0, width, BLOCK_D):
        if EVEN_D:
            b_image = tl.load(p_image)
            b_text = tl.load(p_text)
        else:
            b_image = tl.load(p_image, mask=(d + o_d < width)[None, :], other=0.0)
            b_text = tl.load(p_text, mask=(d + o_d < width)[:, None], other=0.0)
        b_sim = tl.dot(b_image, b_text, b_sim, input_precision=PRECISION)
        p_image += BLOCK_D
        p_text += BLOCK_D
    return b_sim


@triton.jit
def _store_grad(grad_logit, b_grad, store_scale, i_row, i_col, texts, mask, PRECISION: tl.constexpr):
    """Store the gradient by a tile of logits as the matrix units take it."""
    if store_scale is not None:
        b_grad *= tl.load(store_scale)
    if PRECISION == "tf32":
        b_grad = to_tf32(b_grad)
    p_grad = grad_logit + i_row.to(tl.int64)[:, None] * texts + i_col[None, :]
    tl.store(p_grad, b_grad.to(grad_logit.dtype.element_ty), mask=mask)


@triton.jit
def _log_sum(b_logit, AXIS: tl.constexpr):
    """log2 of the sum of 2^x along an axis, each row or column with its own shift."""
    b_max = tl.max(b_logit, AXIS)
    b_shift = tl.where(b_max == NEG_INF, 0.0, b_max)
    return b_shift + tl.log2(tl.sum(tl.exp2(b_logit - tl.expand_dims(b_shift, AXIS)), AXIS))


@triton.jit(do_not_specialize=["first_row", "end_row", "label_offset"])
def lse_fwd_kernel(
    image, text, logit_scale,  # (B, D), (T, D), ()
    image_groups, text_groups,  # (B,), (T,) int64; only with WITH_MAX
    row_part, col_part,  # (tiles_n, strip), (tiles_m, T): log2-sum-exps of the negatives of a tile's rows and columns
    row_max_part, col_max_part,  # the same shapes: largest logit among other groups
    first_row, end_row, strip, texts, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, WITH_MAX: tl.constexpr,
):  # fmt: skip
    """One tile of logits of the rows [first_row, end_row): its part of every row's and every column's sum.

    One exponential serves both: all logits are shifted by the largest negative of the tile. Where that leaves too little of
    some row or column (features far from unit length, say), this tile takes a shift for each.
    """
    i_m, i_n = _tile_of_program(tl.cdiv(end_row - first_row, BLOCK_M), tl.cdiv(texts, BLOCK_N), GROUP_M)
    i_row = first_row + i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_col = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    b_sim = _similarities(
        image, text, i_row, i_col, end_row, texts, width, BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D, PRECISION
    )
    m_row, m_col = i_row < end_row, i_col < texts
    m_in = m_row[:, None] & m_col[None, :]
    b_logit = b_sim * (tl.load(logit_scale).to(tl.float32) * LOG2E)
    p_row = i_n.to(tl.int64) * strip + i_row - first_row
    p_col = i_m.to(tl.int64) * texts + i_col
    if WITH_MAX:
        b_row_group = tl.load(image_groups + i_row, mask=m_row, other=0)
        b_col_group = tl.load(text_groups + i_col, mask=m_col, other=0)
        b_other = tl.where(m_in & (b_row_group[:, None] != b_col_group[None, :]), b_logit, NEG_INF)
        tl.store(row_max_part + p_row, tl.max(b_other, 1), mask=m_row)
        tl.store(col_max_part + p_col, tl.max(b_other, 0), mask=m_col)

    b_logit = tl.where(m_in & (i_col[None, :] != i_row[:, None] + label_offset), b_logit, NEG_INF)
    shift = tl.max(tl.max(b_logit, 1), 0)
    shift = tl.where(shift == NEG_INF, 0.0, shift)
    b_exp = tl.exp2(b_logit - shift)
    b_row, b_col = tl.sum(b_exp, 1), tl.sum(b_exp, 0)
    least = tl.minimum(tl.min(tl.where(m_row, b_row, 1.0), 0), tl.min(tl.where(m_col, b_col, 1.0), 0))
    if least > LEAST_SUM:
        b_row, b_col = shift + tl.log2(b_row), shift + tl.log2(b_col)
    else:
        b_row, b_col = _log_sum(b_logit, 1), _log_sum(b_logit, 0)
    tl.store(row_part + p_row, b_row, mask=m_row)
    tl.store(col_part + p_col, b_col, mask=m_col)


@triton.jit(do_not_specialize=["first_row", "end_row", "label_offset"])
def lse_bwd_kernel(
    image, text, logit_scale,  # (B, D), (T, D), ()
    row_lse, col_lse, row_grad, col_grad,  # (B,), (T,), (B,), (T,): natural log-sum-exps of negatives, their gradients
    store_scale,  # () or None: what the gradients are multiplied by before they are rounded
    grad_logit, grad_scale_part,  # (strip, T) in the features' dtype (only with WITH_GRAD), (tiles,)
    first_row, end_row, texts, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, WITH_GRAD: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss by one tile of logits, zero for the pairs: those would drown the rest when rounded.

    d loss / d l[i, j] = row_grad[i] exp(l - row_lse[i]) + col_grad[j] exp(l - col_lse[j]), by one exponential:
    2^(l - m) (u[i] + v[j]) with u[i] = row_grad[i] 2^(m - row_lse[i]), unless the tile's log-sum-exps lie too far apart.
    """
    i_m, i_n = _tile_of_program(tl.cdiv(end_row - first_row, BLOCK_M), tl.cdiv(texts, BLOCK_N), GROUP_M)
    i_row = first_row + i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_col = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    b_sim = _similarities(
        image, text, i_row, i_col, end_row, texts, width, BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D, PRECISION
    )
    b_logit = b_sim * (tl.load(logit_scale).to(tl.float32) * LOG2E)
    m_row, m_col = i_row < end_row, i_col < texts
    b_row = tl.load(row_lse + i_row, mask=m_row, other=NEG_INF) * LOG2E
    b_col = tl.load(col_lse + i_col, mask=m_col, other=NEG_INF) * LOG2E
    m_row, m_col = b_row != NEG_INF, b_col != NEG_INF  # without negatives there is no gradient
    b_row_grad = tl.load(row_grad + i_row, mask=m_row, other=0.0)
    b_col_grad = tl.load(col_grad + i_col, mask=m_col, other=0.0)
    low = tl.minimum(
        tl.min(tl.where(m_row, b_row, float("inf")), 0), tl.min(tl.where(m_col, b_col, float("inf")), 0)
    )
    high = tl.maximum(tl.max(b_row, 0), tl.max(b_col, 0))
    b_row, b_col = tl.where(m_row, b_row, low), tl.where(m_col, b_col, low)
    if high - low < MOST_SPREAD:
        shift = low + 100.0  # keeps u and v under 2^100, and loses only terms under 2^-26 of their sum
        b_u = b_row_grad * tl.exp2(shift - b_row)
        b_v = b_col_grad * tl.exp2(shift - b_col)
        b_grad = tl.exp2(b_logit - shift) * (b_u[:, None] + b_v[None, :])
    else:
        b_grad = b_row_grad[:, None] * tl.exp2(b_logit - b_row[:, None])
        b_grad += b_col_grad[None, :] * tl.exp2(b_logit - b_col[None, :])
    m_in = (i_row < end_row)[:, None] & (i_col < texts)[None, :]
    b_grad = tl.where(m_in & (i_col[None, :] != i_row[:, None] + label_offset), b_grad, 0.0)
    tl.store(grad_scale_part + tl.program_id(0), tl.sum(tl.sum(b_grad * b_sim, 1), 0))
    if WITH_GRAD:
        _store_grad(grad_logit, b_grad, store_scale, i_row - first_row, i_col, texts, m_in, PRECISION)


@triton.jit
def _sigmoid_tile(
    image, text, logit_scale, logit_bias, store_scale, grad_logit, loss_part, grad_scale_part, grad_bias_part,
    first_row, end_row, texts, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, WITH_GRAD: tl.constexpr,
):  # fmt: skip
    i_m, i_n = _tile_of_program(tl.cdiv(end_row - first_row, BLOCK_M), tl.cdiv(texts, BLOCK_N), GROUP_M)
    i_row = first_row + i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_col = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    b_sim = _similarities(
        image, text, i_row, i_col, end_row, texts, width, BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D, PRECISION
    )
    m_in = (i_row < end_row)[:, None] & (i_col < texts)[None, :]
    m_negative = m_in & (i_col[None, :] != i_row[:, None] + label_offset)
    b_logit = b_sim * tl.load(logit_scale).to(tl.float32) + tl.load(logit_bias).to(tl.float32)
    b_loss, b_grad = softplus(b_logit)
    b_loss = tl.where(m_negative, b_loss, 0.0)
    b_grad = tl.where(m_negative, b_grad, 0.0)
    tl.store(loss_part + tl.program_id(0), tl.sum(tl.sum(b_loss, 1), 0))
    tl.store(grad_bias_part + tl.program_id(0), tl.sum(tl.sum(b_grad, 1), 0))
    tl.store(grad_scale_part + tl.program_id(0), tl.sum(tl.sum(b_grad * b_sim, 1), 0))
    if WITH_GRAD:
        _store_grad(grad_logit, b_grad, store_scale, i_row - first_row, i_col, texts, m_in, PRECISION)


@triton.jit(do_not_specialize=["first_row", "end_row", "label_offset"])
def sigmoid_kernel(
    image, text, logit_scale, logit_bias, store_scale,  # (B, D), (T, D), (), (), () or None
    grad_logit, pair_grad,  # (strip, T) in the features' dtype, only with WITH_GRAD; (B,)
    loss_part, grad_scale_part, grad_bias_part,  # (programs,)
    first_row, end_row, texts, width, label_offset,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, WITH_GRAD: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Loss softplus(l) and gradient sigmoid(l) of one tile of logits, the pairs left out.

    Programs beyond the tiles take PAIRS pairs each, in float32: loss softplus(-l), gradient -sigmoid(-l).
    """
    i_pairs = tl.program_id(0) - tl.cdiv(end_row - first_row, BLOCK_M) * tl.cdiv(texts, BLOCK_N)
    if i_pairs < 0:
        _sigmoid_tile(
            image, text, logit_scale, logit_bias, store_scale, grad_logit, loss_part, grad_scale_part, grad_bias_part,
            first_row, end_row, texts, width, label_offset,
            BLOCK_M, BLOCK_N, BLOCK_D, GROUP_M, EVEN_D, PRECISION, WITH_GRAD,
        )  # fmt: skip
    else:
        i_row = first_row + i_pairs * PAIRS + tl.arange(0, PAIRS)
        m_row = i_row < end_row
        b_sim = pair_similarities(image, text, i_row, end_row, width, label_offset, PAIRS, 128)
        b_logit = b_sim * tl.load(logit_scale).to(tl.float32) + tl.load(logit_bias).to(tl.float32)
        b_loss, b_grad = softplus(-b_logit)
        b_loss, b_grad = tl.where(m_row, b_loss, 0.0), tl.where(m_row, -b_grad, 0.0)
        tl.store(pair_grad + i_row, b_grad, mask=m_row)
        tl.store(loss_part + tl.program_id(0), tl.sum(b_loss, 0))
        tl.store(grad_scale_part + tl.program_id(0), tl.sum(b_grad * b_sim, 0))
        tl.store(grad_bias_part + tl.program_id(0), tl.sum(b_grad, 0))
