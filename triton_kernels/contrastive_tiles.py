"""What the tile kernels of the contrastive losses share: similarities of a block of images and texts, and gradients by them.

Letters: B images, T texts, D width. Prefixes: i_ index, o_ offsets, m_ mask, p_ pointer, b_ block value. A row is an image, a
column a text; the pair of row i is column i + label_offset, beyond the last where there are no pairs.

With DESCRIPTORS matrices come as tensor descriptors: from compute capability 9.0 the hardware copies whole tiles, which needs no
addresses in registers. What is made of a tile is made in quarters of its columns for the same reason: two programs, of four warps
with 255 registers a thread at most, share an SM, and one multiplies while the other takes exponentials. Masks are for tiles at the
ends and at pairs alone (`is_plain`). Nothing here is atomic.

A vector is reduced as a matrix of one row: for compute capability 10.0 Triton 3.6 does not compile the other way.
"""

import triton
import triton.language as tl

from .contrastive_vector_kernels import INTERPRETED, to_tf32


@triton.jit
def origin_of_program(
    first_row,
    end_row,
    first_col,
    end_col,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Row and column of tiles in groups of GROUP_M rows, so that programs running together share operands in the L2."""
    tiles_m, tiles_n = tl.cdiv(end_row - first_row, BLOCK_M), tl.cdiv(end_col - first_col, BLOCK_N)
    pid = tl.program_id(0)
    per_group = GROUP_M * tiles_n
    first = (pid // per_group) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    i_m, i_n = first + (pid % per_group) % height, (pid % per_group) // height
    return first_row + i_m * BLOCK_M, first_col + i_n * BLOCK_N


@triton.jit
def is_plain(row, col, end_row, end_col, label_offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile ends within the rows and columns and holds no pair: nothing of it needs a mask then."""
    first = row + label_offset - col  # column of the first row's pair, counted from the tile's
    return (
        (row + BLOCK_M <= end_row) & (col + BLOCK_N <= end_col) & ((first <= -BLOCK_M) | (first >= BLOCK_N))
    )


@triton.jit
def _halves(b_x):
    return b_x.reshape(b_x.shape[0], 2, b_x.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def similarities(
    image, text, row, col, end_row, end_col, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products in float32, as four tiles (BLOCK_M, BLOCK_N / 4) side by side.

    Beyond the end of rows and columns they are finite where the features are, no more: callers mask them.
    """
    b_sim = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if DESCRIPTORS:
        for d in range(0, width, BLOCK_D):
            b_sim = tl.dot(image.load([row, d]), text.load([col, d]).T, b_sim, input_precision=PRECISION)
    else:
        o_d = tl.arange(0, BLOCK_D)
        i_row = tl.minimum(row + tl.arange(0, BLOCK_M), end_row - 1)
        i_col = tl.minimum(col + tl.arange(0, BLOCK_N), end_col - 1)
        p_image = image + i_row.to(tl.int64)[:, None] * width + o_d[None, :]
        p_text = text + i_col.to(tl.int64)[None, :] * width + o_d[:, None]
        for d in range(0, width, BLOCK_D):
            if EVEN_D:
                b_image, b_text = tl.load(p_image), tl.load(p_text)
            else:
                b_image = tl.load(p_image, mask=(d + o_d < width)[None, :], other=0.0)
                b_text = tl.load(p_text, mask=(d + o_d < width)[:, None], other=0.0)
            b_sim = tl.dot(b_image, b_text, b_sim, input_precision=PRECISION)
            p_image += BLOCK_D
            p_text += BLOCK_D
    b_left, b_right = _halves(b_sim)
    b_0, b_1 = _halves(b_left)
    b_2, b_3 = _halves(b_right)
    return b_0, b_1, b_2, b_3


@triton.jit
def eighths(b_x):
    """Sums of every eighth column (rows, 8): of what the matrix units give to one thread, which needs no other for it."""
    return tl.sum(b_x.reshape(b_x.shape[0], b_x.shape[1] // 8, 8), 1)


@triton.jit
def pinned(b_x):
    """The same, computed here: a compiler that moves it to where it is used first keeps all its terms until then."""
    if INTERPRETED:
        return b_x
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [b_x], tl.float32, False, 1)


@triton.jit
def rounded(b_x, dtype: tl.constexpr):
    """As the workspace holds it, and what that is in float32."""
    # Two at a time: Triton converts one by one and leaves pairs to the assembler, which does not find them where both are used.
    if INTERPRETED or dtype == tl.float32:
        b_held = b_x.to(dtype)
        return b_held, b_held.to(tl.float32)
    elif dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;",
            "=r,=r,=r,r,r", [b_x], (tl.bfloat16, tl.float32), True, 2,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            """{ .reg .b16 %low, %high; cvt.rn.f16x2.f32 $0, $4, $3;
            mov.b32 {%low, %high}, $0; cvt.f32.f16 $1, %low; cvt.f32.f16 $2, %high; }""",
            "=r,=r,=r,r,r", [b_x], (tl.float16, tl.float32), True, 2,
        )  # fmt: skip


@triton.jit
def store_grad(
    grad_logit,
    grad_stride,
    b_grad,
    store_scale,
    row,
    col,
    rows,
    cols,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the gradient by a tile of logits, times store_scale, as the matrix units take it, and return the rounding residuals; row
    and col count from the first of `rows` and `cols` of the block."""
    if store_scale is not None:
        b_grad *= tl.load(store_scale)
    if PRECISION == "tf32":
        b_grad = to_tf32(b_grad)
    if DESCRIPTORS:
        b_held, b_rounded = rounded(b_grad, grad_logit.dtype)
        grad_logit.store([row, col], b_held)
    else:
        b_held, b_rounded = rounded(b_grad, grad_logit.dtype.element_ty)
        i_row, i_col = row + tl.arange(0, b_grad.shape[0]), col + tl.arange(0, b_grad.shape[1])
        p_grad = grad_logit + i_row.to(tl.int64)[:, None] * grad_stride + i_col[None, :]
        m_in = (i_row < rows)[:, None] & (i_col < cols)[None, :]
        tl.store(p_grad, b_held, mask=m_in)
    return b_rounded, b_grad - b_rounded
