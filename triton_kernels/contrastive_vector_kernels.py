"""Vector kernels of the contrastive losses: what comes before and after the tiles of logits.

Letters and prefixes as in contrastive_tiles.py. Nothing here is atomic.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NEG_INF = tl.constexpr(float("-inf"))
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # which knows no assembly


# Of a sum of entries of one sign, bfloat16 takes half of it at most, float16 from all that are not subnormal less.
MOST_RESIDUAL = tl.constexpr(2.0**-8)


@triton.jit
def finite(b_max):
    """Shift for an exponential: zero where there is nothing to shift."""
    return tl.where(b_max == NEG_INF, 0.0, b_max)


@triton.jit
def sign_and_gain(logit_scale):
    """The largest logit is that of the largest sign * similarity; gain: |logit_scale| in units of log 2, kept off zero, so
    that -inf stays that."""
    scale = tl.load(logit_scale).to(tl.float32)
    size = tl.abs(scale)
    return tl.where(scale < 0, -1.0, 1.0), tl.where(size < 1.2e-38, 1.2e-38, size) * LOG2E


@triton.jit
def reciprocal(b_x):
    """1 / x of numbers that are not subnormal, to float32's last place."""
    if INTERPRETED:
        return 1.0 / b_x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [b_x], tl.float32, True, 1)


@triton.jit
def softplus(b_logit):
    """softplus and sigmoid of a logit, to a few roundings however small; a NaN stays.

    log(1 + e) = 2 atanh(e / (2 + e)), a polynomial; log2(1 + e) would take more steps and lose what 1 + e does.
    """
    b_exp = tl.exp2(-tl.abs(b_logit) * LOG2E)
    b_one, b_two = 1.0 + b_exp, 2.0 + b_exp
    b_inverse = reciprocal(b_one * b_two)
    b_t = b_exp * (b_one * b_inverse)
    b_u = b_t * b_t
    b_poly = 1.0 + b_u * (0.33333158 + b_u * (0.20012455 + b_u * (0.139803007 + b_u * 0.14089167)))
    b_sigmoid = tl.where(b_logit > 0, 1.0, b_exp) * (b_two * b_inverse)
    return tl.maximum(b_logit, 0.0) + 2.0 * b_t * b_poly, b_sigmoid


@triton.jit
def to_tf32(b_x):
    """Round float32 to the nearest TF32, ties away from zero; the matrix units would truncate, which shortens every feature."""
    b_bits = (b_x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    # The bits of a NaN could carry into its sign.
    return tl.where(b_x == b_x, b_bits.to(tl.float32, bitcast=True), b_x)


@triton.jit
def _round(x, out, count, i_block, BLOCK: tl.constexpr):
    i_x = i_block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i_x, to_tf32(tl.load(x + i_x, mask=i_x < count)), mask=i_x < count)


@triton.jit(do_not_specialize=["images", "texts"])
def round_kernel(
    image, text, image_out, text_out,  # float32, images and texts elements
    images, texts, BLOCK: tl.constexpr,
):  # fmt: skip
    """Round both towers to TF32."""
    i_block = tl.program_id(0)
    blocks = tl.cdiv(images, BLOCK)
    if i_block < blocks:
        _round(image, image_out, images, i_block, BLOCK)
    else:
        _round(text, text_out, texts, i_block - blocks, BLOCK)


@triton.jit
def _merged(shift_partial, sum_partial, partials, size, i_x, gain, BLOCK_P: tl.constexpr):
    """Shift and sum over the partial ones (partials, size) of the columns i_x, in their order."""
    m_x = i_x < size
    b_shift = tl.full(i_x.shape, NEG_INF, tl.float32)
    b_sum = tl.zeros(i_x.shape, tl.float32)
    for p in range(0, partials, BLOCK_P):
        i_p = p + tl.arange(0, BLOCK_P)
        o_partial = i_p.to(tl.int64)[:, None] * size + i_x[None, :]
        m_partial = (i_p < partials)[:, None] & m_x[None, :]
        b_partial = tl.load(shift_partial + o_partial, mask=m_partial, other=NEG_INF)
        b_partial_sum = tl.load(sum_partial + o_partial, mask=m_partial, other=0.0)
        b_last, b_shift = b_shift, tl.maximum(b_shift, tl.max(b_partial, 0))
        b_sum *= tl.exp2((b_last - finite(b_shift)) * gain)
        b_sum += tl.sum(b_partial_sum * tl.exp2((b_partial - finite(b_shift)[None, :]) * gain), 0)
    return b_shift, b_sum


@triton.jit
def _with_sum_of_one(b_shift, b_sum, gain):
    """The same log-sum-exp, its shift no further above it than the similarities' rounding: a gradient of the sum is then no
    larger than that of the log-sum-exp."""
    m_low = (b_sum > 0) & (b_sum < 1)
    b_new = tl.where(m_low, b_shift + tl.log2(tl.where(m_low, b_sum, 1.0)) / gain, b_shift)
    return b_new, tl.where(m_low, b_sum * tl.exp2((b_shift - b_new) * gain), b_sum)


@triton.jit
def _merge(
    shift_partial, sum_partial, shift, total, partials, size, i_block, sign, gain, last, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i_x = i_block * BLOCK + tl.arange(0, BLOCK)
    b_shift, b_sum = _merged(shift_partial, sum_partial, partials, size, i_x, gain, BLOCK_P)
    if last:
        b_shift, b_sum = _with_sum_of_one(b_shift, b_sum, gain)
        b_shift *= sign
    tl.store(shift + i_x, b_shift, mask=i_x < size)
    tl.store(total + i_x, b_sum, mask=i_x < size)


@triton.jit(do_not_specialize=["row_partials", "rows", "col_partials", "cols"])
def merge_kernel(
    logit_scale, row_shift_partial, row_sum_partial, row_shift, row_sum,  # (), (row_partials, rows) twice -> (rows,) twice
    col_shift_partial, col_sum_partial, col_shift, col_sum,  # (col_partials, cols) twice -> (cols,) twice
    row_partials, rows, col_partials, cols, COLS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the partial shifts and sums of rows and of columns, in their order.

    Results are similarities of their own sign; those of columns only after their last merge, COLS_LAST.
    """
    i_block = tl.program_id(0)
    sign, gain = sign_and_gain(logit_scale)
    row_blocks = tl.cdiv(rows, BLOCK)
    if i_block < row_blocks:
        _merge(
            row_shift_partial, row_sum_partial, row_shift, row_sum, row_partials, rows, i_block, sign, gain, True, BLOCK_P, BLOCK
        )  # fmt: skip
    else:
        _merge(
            col_shift_partial, col_sum_partial, col_shift, col_sum, col_partials, cols, i_block - row_blocks, sign, gain,
            COLS_LAST, BLOCK_P, BLOCK,
        )  # fmt: skip


@triton.jit
def _merge_max(partial, out, partials, size, i_block, sign, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr):
    i_x = i_block * BLOCK + tl.arange(0, BLOCK)
    b_max = tl.full((BLOCK,), NEG_INF, tl.float32)
    for p in range(0, partials, BLOCK_P):
        i_p = p + tl.arange(0, BLOCK_P)
        o_partial = i_p.to(tl.int64)[:, None] * size + i_x[None, :]
        b_partial = tl.load(
            partial + o_partial, mask=(i_p < partials)[:, None] & (i_x < size)[None, :], other=NEG_INF
        )
        b_max = tl.maximum(b_max, tl.max(b_partial, 0))
    tl.store(out + i_x, b_max * sign, mask=i_x < size)


@triton.jit(do_not_specialize=["row_partials", "rows", "col_partials", "cols"])
def merge_max_kernel(
    logit_scale, row_partial, row_max, col_partial, col_max,  # (), (row_partials, rows) -> (rows,), (col_partials, cols) -> (cols,)
    row_partials, rows, col_partials, cols, COLS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge maxima as `merge_kernel` does sums."""
    i_block = tl.program_id(0)
    sign, _ = sign_and_gain(logit_scale)
    row_blocks = tl.cdiv(rows, BLOCK)
    if i_block < row_blocks:
        _merge_max(row_partial, row_max, row_partials, rows, i_block, sign, BLOCK_P, BLOCK)
    else:
        _merge_max(
            col_partial,
            col_max,
            col_partials,
            cols,
            i_block - row_blocks,
            sign if COLS_LAST else 1.0,
            BLOCK_P,
            BLOCK,
        )


@triton.jit
def _direction(b_positive, b_shift, b_sum, scale, weight, grad_sum, i_x, m_x):
    """Weighted softplus(log-sum-exp - logit of the pair) in one direction, and its slope; the gradient by the sum is stored.

    A direction without weight adds nothing, not even a NaN; a pair without negatives has a probability of one, unless
    its similarity is not finite.
    """
    b_odd = b_positive - b_positive  # NaN unless it is finite
    m_loss = (weight != 0) & ((b_sum != 0) | (b_odd != 0))
    b_lead = scale * (b_shift - b_positive) + tl.log2(tl.where(m_loss, b_sum, 1.0)) * LN2
    b_lead = tl.where(b_sum == 0, b_lead + b_odd, b_lead)
    b_loss, b_slope = softplus(tl.where(m_loss, b_lead, NEG_INF))
    b_loss, b_slope = tl.where(m_loss, b_loss * weight, 0.0), tl.where(m_loss, b_slope * weight, 0.0)
    tl.store(grad_sum + i_x, b_slope / tl.where(m_loss, b_sum, 1.0), mask=m_x)
    return b_loss, b_slope


@triton.jit
def _pair_terms(
    positive, b_image_shift, b_image_sum, b_text_shift, b_text_sum, scale, grad_positive, grad_image_sum, grad_text_sum,
    image_weight, text_weight, i_x, rows,
):  # fmt: skip
    """What the pairs i_x add to the loss and to its gradient by the scale; the other gradients are stored."""
    m_x = i_x < rows
    b_positive = tl.load(positive + i_x, mask=m_x, other=0.0)
    b_image, b_image_slope = _direction(
        b_positive, b_image_shift, b_image_sum, scale, image_weight, grad_image_sum, i_x, m_x
    )
    b_text, b_text_slope = _direction(
        b_positive, b_text_shift, b_text_sum, scale, text_weight, grad_text_sum, i_x, m_x
    )
    b_slope = b_image_slope + b_text_slope
    tl.store(grad_positive + i_x, -scale * b_slope, mask=m_x)
    b_loss, b_scale = tl.where(m_x, b_image + b_text, 0.0), tl.where(m_x, -b_slope * b_positive, 0.0)
    return b_loss.to(tl.float64), b_scale.to(tl.float64)


@triton.jit(do_not_specialize=["rows"])
def pair_loss_kernel(
    positive, image_shift, image_sum, text_shift, text_sum, logit_scale,  # (B,) each, ()
    loss, grad_positive, grad_image_sum, grad_text_sum, grad_scale,  # (), (B,), (B,), (B,), ()
    image_weight, text_weight, rows, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weighted sum of softplus(log-sum-exp - logit) over the pairs, by one program in float64, and its gradients."""
    scale = tl.load(logit_scale).to(tl.float32)
    b_loss, b_scale = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for first in range(0, rows, BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        m_x = i_x < rows
        b_terms, b_scale_terms = _pair_terms(
            positive, tl.load(image_shift + i_x, mask=m_x, other=0.0), tl.load(image_sum + i_x, mask=m_x, other=0.0),
            tl.load(text_shift + i_x, mask=m_x, other=0.0), tl.load(text_sum + i_x, mask=m_x, other=0.0),
            scale, grad_positive, grad_image_sum, grad_text_sum, image_weight, text_weight, i_x, rows,
        )  # fmt: skip
        b_loss += b_terms
        b_scale += b_scale_terms
    tl.store(loss, tl.sum(b_loss, 0).to(tl.float32))
    tl.store(grad_scale, tl.sum(b_scale, 0).to(grad_scale.dtype.element_ty))


@triton.jit(do_not_specialize=["row_partials", "col_partials", "rows"])
def merge_pair_loss_kernel(
    positive, logit_scale,  # (B,), ()
    row_shift_partial, row_sum_partial, col_shift_partial, col_sum_partial,  # (row_partials, B) twice, (col_partials, B) twice
    image_shift, text_shift,  # (B,), (B,)
    loss, grad_positive, grad_image_sum, grad_text_sum, grad_scale,  # (), (B,), (B,), (B,), ()
    image_weight, text_weight, row_partials, col_partials, rows, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What merge_kernel and pair_loss_kernel do, in one launch of one program: for batches that launches outlast."""
    scale = tl.load(logit_scale).to(tl.float32)
    sign, gain = sign_and_gain(logit_scale)
    b_loss, b_scale = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for first in range(0, rows, BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        b_image, b_image_sum = _merged(
            row_shift_partial, row_sum_partial, row_partials, rows, i_x, gain, BLOCK_P
        )
        b_image, b_image_sum = _with_sum_of_one(b_image, b_image_sum, gain)
        b_text, b_text_sum = _merged(
            col_shift_partial, col_sum_partial, col_partials, rows, i_x, gain, BLOCK_P
        )
        b_text, b_text_sum = _with_sum_of_one(b_text, b_text_sum, gain)
        tl.store(image_shift + i_x, b_image * sign, mask=i_x < rows)
        tl.store(text_shift + i_x, b_text * sign, mask=i_x < rows)
        b_terms, b_scale_terms = _pair_terms(
            positive, b_image * sign, b_image_sum, b_text * sign, b_text_sum, scale,
            grad_positive, grad_image_sum, grad_text_sum, image_weight, text_weight, i_x, rows,
        )  # fmt: skip
        b_loss += b_terms
        b_scale += b_scale_terms
    tl.store(loss, tl.sum(b_loss, 0).to(tl.float32))
    tl.store(grad_scale, tl.sum(b_scale, 0).to(grad_scale.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "cols"])
def store_scale_kernel(row_grad, col_grad, out, rows, cols, BLOCK: tl.constexpr):
    """out () = what brings gradients by logits of at most |row_grad| + |col_grad| (B,), (T,) to at most 2^14, by one program."""
    b_max = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, tl.maximum(rows, cols), BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        b_max = tl.maximum(b_max, tl.abs(tl.load(row_grad + i_x, mask=i_x < rows, other=0.0)))
        b_max = tl.maximum(b_max, tl.abs(tl.load(col_grad + i_x, mask=i_x < cols, other=0.0)))
    largest = tl.max(b_max, 0)
    tl.store(out, tl.where(largest > 0, 8192.0 / largest, 1.0))


@triton.jit
def pair_similarities(
    image, text, i_row, end_row, width, label_offset, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Similarity of the pairs of rows i_row (BLOCK,), in float32 whatever the features: the loss of a well-trained batch hangs
    on it."""
    o_d = tl.arange(0, BLOCK_D)
    p_image = image + i_row.to(tl.int64)[:, None] * width + o_d[None, :]
    p_text = text + (i_row + label_offset).to(tl.int64)[:, None] * width + o_d[None, :]
    b_sum = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for d in range(0, width, BLOCK_D):
        mask = (i_row < end_row)[:, None] & (d + o_d < width)[None, :]
        b_image = tl.load(p_image + d, mask=mask, other=0.0).to(tl.float32)
        b_sum += b_image * tl.load(p_text + d, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(b_sum, 1)


@triton.jit
def _column_sums(partial, partials, size, i_x, BLOCK_P: tl.constexpr):
    """Sums of partial (partials, size) of the columns i_x, in their order."""
    b_sum = tl.zeros(i_x.shape, tl.float32)
    for p in range(0, partials, BLOCK_P):
        i_p = p + tl.arange(0, BLOCK_P)
        m_partial = (i_p < partials)[:, None] & (i_x < size)[None, :]
        b_sum += tl.sum(
            tl.load(partial + i_p.to(tl.int64)[:, None] * size + i_x[None, :], mask=m_partial, other=0.0), 0
        )
    return b_sum


@triton.jit
def _finish(
    product, sums, partials, stride, other, pair_grad, factor, scale, store_scale, grad,
    rows, others, width, to_other, i_block,
    PAIR_BY_ROW: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_row = i_block * BLOCK + tl.arange(0, BLOCK)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    i_other = i_row + to_other
    m_pair = (i_row < rows) & (i_other >= 0) & (i_other < others)
    m_d = o_d < width
    b_pair = tl.load(pair_grad + (i_row if PAIR_BY_ROW else i_other), mask=m_pair, other=0.0)
    p_other = other + i_other.to(tl.int64)[:, None] * width + o_d[None, :]
    b_other = tl.load(p_other, mask=m_pair[:, None] & m_d[None, :], other=0.0).to(tl.float32)
    o_out = i_row.to(tl.int64)[:, None] * width + o_d[None, :]
    m_out = (i_row < rows)[:, None] & m_d[None, :]
    b_product = tl.load(product + o_out, mask=m_out, other=0.0)
    if sums is not None:
        b_sum = _column_sums(sums, partials, stride, i_row, 32)
        b_residual = _column_sums(
            sums + tl.full((), partials, tl.int64) * stride, partials, stride, i_row, 32
        )
        m_one_sign = tl.abs(b_residual) <= tl.abs(b_sum) * MOST_RESIDUAL
        b_product *= (1.0 + tl.where(m_one_sign & (b_sum != 0), b_residual / b_sum, 0.0))[:, None]
        b_product += tl.where(m_one_sign, 0.0, b_residual)[:, None] * b_other
    if store_scale is not None:
        b_product /= tl.load(store_scale)
    b_grad = (scale * b_product + b_pair[:, None] * b_other) * factor
    tl.store(grad + o_out, b_grad.to(grad.dtype.element_ty), mask=m_out)


@triton.jit
def _total(partial, base, out, count, factor, BLOCK: tl.constexpr):
    b_sum = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        b_sum += tl.load(partial + i_x, mask=i_x < count, other=0.0).to(tl.float64)
    total = tl.sum(b_sum, 0)
    if base is not None:
        total += tl.load(base).to(tl.float64)
    tl.store(out, (total * factor).to(out.dtype.element_ty))


@triton.jit(
    do_not_specialize=[
        "row_partials", "col_partials", "block_rows", "first_row", "rows", "cols", "images", "texts", "label_offset", "count",
    ]
)  # fmt: skip
def finish_kernel(
    image_product, text_product,  # (rows, D), (T, D) in float32
    row_sums, col_sums,  # (2, row_partials, block_rows), (2, col_partials, T) or None: see contrastive_residuals.py
    row_partials, col_partials, block_rows,
    image, text, pair_grad, logit_scale, store_scale, grad,  # (B, D), (T, D), (B,), (), () or None, () or None
    grad_image, grad_text,  # (B, D), (T, D)
    partial, out, partial_1, out_1, partial_2, out_2, base,  # (count,), () three times, () or None
    first_row, rows, cols, images, texts, width, label_offset, count,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Feature gradient = grad * (scale * product / store_scale + pair_grad * feature of the pair's other half), rounded once.

    A row of a product is multiplied by what rounding took from its factor's sum, or the pair is given it.

    For `rows` images from first_row and for `cols` texts, all or none of them. Each of up to three programs beyond those makes one
    sum, out () = grad * sum of partial (count,), the first with base () added, in float64: no second stage, the same bits on every run.
    """
    i_block = tl.program_id(0)
    row_blocks = tl.cdiv(rows, BLOCK)
    i_total = i_block - row_blocks - tl.cdiv(cols, BLOCK)
    factor = 1.0 if grad is None else tl.load(grad).to(tl.float32)
    scale = tl.load(logit_scale).to(tl.float32)
    if i_block < row_blocks:
        offset = tl.full((), first_row, tl.int64) * width
        _finish(
            image_product, row_sums, row_partials, block_rows, text, pair_grad + first_row, factor, scale, store_scale, grad_image + offset,
            rows, texts, width, first_row + label_offset, i_block, True, BLOCK, BLOCK_D,
        )  # fmt: skip
    elif i_total < 0:
        _finish(
            text_product, col_sums, col_partials, texts, image, pair_grad, factor, scale, store_scale, grad_text,
            cols, images, width, -label_offset, i_block - row_blocks, False, BLOCK, BLOCK_D,
        )  # fmt: skip
    elif tl.program_id(1) == 0:
        if i_total == 0:
            _total(partial, base, out, count, factor, 4096)
        elif i_total == 1:
            _total(partial_1, None, out_1, count, factor, 4096)
        else:
            _total(partial_2, None, out_2, count, factor, 4096)
