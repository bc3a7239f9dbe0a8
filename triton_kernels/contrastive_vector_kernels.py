"""Vector kernels of the contrastive losses: what comes before and after the tiles of logits.

Letters and prefixes as in contrastive_tiles.py. Nothing here is atomic.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NEG_INF = tl.constexpr(float("-inf"))


@triton.jit
def softplus(b_logit):
    """softplus and sigmoid of a logit, exact to float32 where they are small; a NaN stays."""
    b_exp = tl.exp2(-tl.abs(b_logit) * LOG2E)
    b_sum = 1.0 + b_exp
    # log(1 + e) loses e below 2^-24; e (1 - e / 2) has it to 2^-24 from 2^-8 down with one more term.
    b_log = tl.where(
        b_exp < 0.00390625, b_exp * (1.0 - b_exp * (0.5 - b_exp * (1.0 / 3.0))), tl.log2(b_sum) * LN2
    )
    return tl.maximum(b_logit, 0.0) + b_log, tl.where(b_logit > 0, 1.0, b_exp) / b_sum


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
def _merged(part, parts, size, i_x, IS_MAX: tl.constexpr, BLOCK_P: tl.constexpr):
    """Log2-sum-exp (or maximum) over the parts (parts, size) of the columns i_x, in the parts' order."""
    m_x = i_x < size
    b_max = tl.full(i_x.shape, NEG_INF, tl.float32)
    b_sum = tl.zeros(i_x.shape, tl.float32)
    for p in range(0, parts, BLOCK_P):
        i_p = p + tl.arange(0, BLOCK_P)
        b_part = tl.load(
            part + i_p.to(tl.int64)[:, None] * size + i_x[None, :],
            mask=(i_p < parts)[:, None] & m_x[None, :], other=NEG_INF,
        )  # fmt: skip
        b_new = tl.maximum(b_max, tl.max(b_part, 0))
        if not IS_MAX:
            b_shift = tl.where(b_new == NEG_INF, 0.0, b_new)
            b_sum = b_sum * tl.exp2(b_max - b_shift) + tl.sum(tl.exp2(b_part - b_shift[None, :]), 0)
        b_max = b_new
    if IS_MAX:
        return b_max
    else:
        return tl.where(b_max == NEG_INF, 0.0, b_max) + tl.log2(b_sum)


@triton.jit
def _merge(
    part, out, parts, size, i_block,
    IS_MAX: tl.constexpr, TO_NATURAL: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i_x = i_block * BLOCK + tl.arange(0, BLOCK)
    b_out = _merged(part, parts, size, i_x, IS_MAX, BLOCK_P)
    if TO_NATURAL:
        b_out = b_out * LN2
    tl.store(out + i_x, b_out, mask=i_x < size)


@triton.jit(do_not_specialize=["row_parts", "rows", "col_parts", "cols"])
def merge_kernel(
    row_part, row_out,  # (row_parts, rows) -> (rows,)
    col_part, col_out,  # (col_parts, cols) -> (cols,)
    row_parts, rows, col_parts, cols,
    IS_MAX: tl.constexpr, COLS_TO_NATURAL: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the parts of rows and of columns by log2-sum-exp (or by maximum), in their order.

    Rows leave units of log 2; columns where COLS_TO_NATURAL, that is, after their last merge.
    """
    i_block = tl.program_id(0)
    row_blocks = tl.cdiv(rows, BLOCK)
    if i_block < row_blocks:
        _merge(row_part, row_out, row_parts, rows, i_block, IS_MAX, True, BLOCK_P, BLOCK)
    else:
        _merge(
            col_part, col_out, col_parts, cols, i_block - row_blocks, IS_MAX, COLS_TO_NATURAL, BLOCK_P, BLOCK
        )


@triton.jit
def _pair_terms(
    positive,
    b_image,
    b_text,
    grad_positive,
    grad_image_lse,
    grad_text_lse,
    image_weight,
    text_weight,
    i_x,
    rows,
):
    """Weighted softplus(lse - positive) of the pairs i_x, from both directions' log-sum-exps; its gradients are stored.

    A direction without weight adds nothing, not even a NaN.
    """
    m_x = i_x < rows
    b_positive = tl.load(positive + i_x, mask=m_x, other=0.0)
    b_image, b_image_slope = softplus(b_image - b_positive)
    b_text, b_text_slope = softplus(b_text - b_positive)
    b_image_slope = tl.where(image_weight != 0, b_image_slope * image_weight, 0.0)
    b_text_slope = tl.where(text_weight != 0, b_text_slope * text_weight, 0.0)
    tl.store(grad_image_lse + i_x, b_image_slope, mask=m_x)
    tl.store(grad_text_lse + i_x, b_text_slope, mask=m_x)
    tl.store(grad_positive + i_x, -(b_image_slope + b_text_slope), mask=m_x)
    b_image = tl.where(m_x & (image_weight != 0), b_image * image_weight, 0.0)
    b_text = tl.where(m_x & (text_weight != 0), b_text * text_weight, 0.0)
    return (b_image + b_text).to(tl.float64)


@triton.jit(do_not_specialize=["rows"])
def pair_loss_kernel(
    positive, image_lse, text_lse,  # (B,) each
    loss, grad_positive, grad_image_lse, grad_text_lse,  # (), (B,), (B,), (B,)
    image_weight, text_weight, rows, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weighted sum of softplus(lse - positive) over the pairs, by one program in float64, and its gradients."""
    b_sum = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, rows, BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        b_image = tl.load(image_lse + i_x, mask=i_x < rows, other=NEG_INF)
        b_text = tl.load(text_lse + i_x, mask=i_x < rows, other=NEG_INF)
        b_sum += _pair_terms(
            positive, b_image, b_text, grad_positive, grad_image_lse, grad_text_lse, image_weight, text_weight, i_x, rows
        )  # fmt: skip
    tl.store(loss, tl.sum(b_sum, 0).to(tl.float32))


@triton.jit(do_not_specialize=["row_parts", "col_parts", "rows"])
def merge_pair_loss_kernel(
    positive, row_part, col_part, image_lse, text_lse,  # (B,), (row_parts, B), (col_parts, B) -> (B,), (B,)
    loss, grad_positive, grad_image_lse, grad_text_lse,  # (), (B,), (B,), (B,)
    image_weight, text_weight, row_parts, col_parts, rows, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What merge_kernel and pair_loss_kernel do, in one launch of one program: for batches that launches outlast."""
    b_sum = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, rows, BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        b_image = _merged(row_part, row_parts, rows, i_x, False, BLOCK_P) * LN2
        b_text = _merged(col_part, col_parts, rows, i_x, False, BLOCK_P) * LN2
        tl.store(image_lse + i_x, b_image, mask=i_x < rows)
        tl.store(text_lse + i_x, b_text, mask=i_x < rows)
        b_sum += _pair_terms(
            positive, b_image, b_text, grad_positive, grad_image_lse, grad_text_lse, image_weight, text_weight, i_x, rows
        )  # fmt: skip
    tl.store(loss, tl.sum(b_sum, 0).to(tl.float32))


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
def _finish(
    product, other, pair_grad, factor, store_scale, grad, rows, others, width, to_other, i_block,
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
    if store_scale is not None:
        b_product /= tl.load(store_scale)
    b_grad = (b_product + b_pair[:, None] * b_other) * factor
    tl.store(grad + o_out, b_grad.to(grad.dtype.element_ty), mask=m_out)


@triton.jit
def _total(part, out, count, factor, BLOCK: tl.constexpr):
    b_sum = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        b_sum += tl.load(part + i_x, mask=i_x < count, other=0.0).to(tl.float64)
    tl.store(out, (tl.sum(b_sum, 0) * factor).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["first_row", "rows", "cols", "images", "texts", "label_offset", "count"])
def finish_kernel(
    image_product, text_product,  # (rows, D), (T, D) in float32
    image, text, pair_grad, logit_scale, store_scale, grad,  # (B, D), (T, D), (B,), (), () or None, () or None
    grad_image, grad_text,  # (B, D), (T, D)
    part, out, part_1, out_1, part_2, out_2,  # (count,), () three times
    first_row, rows, cols, images, texts, width, label_offset, count,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Feature gradient = grad * scale * (product / store_scale + pair_grad * feature of the pair's other half), rounded once.

    For `rows` images from first_row and for `cols` texts, all or none of them. Each of up to three programs beyond those makes one
    sum, out () = grad * sum of part (count,), in float64: no second stage, the same bits on every run.
    """
    i_block = tl.program_id(0)
    row_blocks = tl.cdiv(rows, BLOCK)
    i_total = i_block - row_blocks - tl.cdiv(cols, BLOCK)
    factor = 1.0 if grad is None else tl.load(grad).to(tl.float32)
    scaled = factor * tl.load(logit_scale).to(tl.float32)
    if i_block < row_blocks:
        offset = tl.full((), first_row, tl.int64) * width
        _finish(
            image_product, text, pair_grad + first_row, scaled, store_scale, grad_image + offset,
            rows, texts, width, first_row + label_offset, i_block, True, BLOCK, BLOCK_D,
        )  # fmt: skip
    elif i_total < 0:
        _finish(
            text_product, image, pair_grad, scaled, store_scale, grad_text,
            cols, images, width, -label_offset, i_block - row_blocks, False, BLOCK, BLOCK_D,
        )  # fmt: skip
    elif tl.program_id(1) == 0:
        if i_total == 0:
            _total(part, out, count, factor, 4096)
        elif i_total == 1:
            _total(part_1, out_1, count, factor, 4096)
        else:
            _total(part_2, out_2, count, factor, 4096)
