"""What the two gradients by logits of the contrastive losses share on a GPU: tile sizes, and the walk over strips of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import contrastive_vectors as vectors

WORKSPACE_BYTES = 256 * 2**20  # of the gradient by logits
PAIRS = 16  # of a program that takes pairs
ALIGNMENT = 16  # bytes, of a matrix that a descriptor describes


class Config(NamedTuple):
    """Tile sizes and how they run."""

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int
    descriptors: bool = False  # whether matrices come as tensor descriptors
    max_registers: int | None = None  # of a thread


def config_for(dtype: torch.dtype, width: int, capability: int, pass_: str) -> Config:
    """Choose tiles by a plain rule: autotuning would recompile for every batch size and differ between runs.

    pass_ is "forward", "backward" or "sigmoid". By what they compile to for compute capability 8.0, 9.0, 10.0 and 12.0: no
    spills, and on 9.0 two programs to an SM, so that one multiplies while the other takes exponentials.
    """
    if dtype == torch.float32:
        return Config(64, 64, 32, 4, 2)
    family = capability // 10
    narrow = {8: ("sigmoid",), 10: ("backward", "sigmoid"), 12: ("sigmoid",)}
    block_n = 64 if pass_ in narrow.get(family, ()) else 128
    block_d = 64 if width > 32 else 32
    # Triton 3.6 does not compile descriptors for 12.0, and below 9.0 there are none in hardware.
    return Config(128, block_n, block_d, 8, 3, family in (9, 10), 128 if family == 9 else None)


def config_of(features: Tensor, pass_: str) -> Config:
    """Tiles for these features on their device; without one, for the oldest."""
    capability = 80
    if features.is_cuda:
        major, minor = torch.cuda.get_device_capability(features.device)
        capability = 10 * major + minor
    return config_for(features.dtype, features.shape[1], capability, pass_)


def precision_of(features: Tensor) -> str:
    """Precision of matrix products of such features: that of PyTorch's own, IEEE unless TF32 is allowed there."""
    # torch.get_float32_matmul_precision raises where TF32 was allowed by this newer name.
    allowed = features.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed and features.dtype == torch.float32 else "ieee"


def operands(image: Tensor, text: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Features as the matrix units should have them: rounded beforehand, where those would truncate them, and aligned."""
    if precision_of(image) == "tf32":
        rounded, block = tuple(torch.empty_like(x) for x in (image, text)), 4096
        blocks = cdiv(image.numel(), block) + cdiv(text.numel(), block)
        vectors.round_kernel[(blocks,)](image, text, *rounded, image.numel(), text.numel(), BLOCK=block)
        return rounded
    return (aligned(image), aligned(text)) if config.descriptors else (image, text)


def aligned(x: Tensor) -> Tensor:
    """The matrix x, or a copy of it whose rows begin at multiples of ALIGNMENT bytes."""
    whole_rows = x.stride(0) * x.element_size() % ALIGNMENT == 0
    return x if whole_rows and x.data_ptr() % ALIGNMENT == 0 else aligned_empty(x, *x.shape).copy_(x)


def aligned_empty(like: Tensor, rows: int, width: int) -> Tensor:
    """Return a new matrix whose rows begin at multiples of ALIGNMENT bytes."""
    step = ALIGNMENT // like.element_size()
    return like.new_empty(rows, cdiv(width, step) * step)[:, :width]


def matrix(x: Tensor, config: Config, rows: int, width: int) -> Tensor | TensorDescriptor:
    """Give x to a kernel that takes it in blocks (rows, width)."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, width]) if config.descriptors else x


def matrices(image: Tensor, text: Tensor, config: Config) -> tuple[Tensor | TensorDescriptor, ...]:
    """Give the operands of the logits to a kernel."""
    return matrix(image, config, config.block_m, config.block_d), matrix(
        text, config, config.block_n, config.block_d
    )


def options(config: Config, features: Tensor) -> dict:
    """What the matrix kernels are compiled for."""
    return dict(
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_D=config.block_d, GROUP_M=8,
        DESCRIPTORS=config.descriptors, EVEN_D=features.shape[1] % config.block_d == 0, PRECISION=precision_of(features),
        num_warps=config.warps, num_stages=config.stages, maxnreg=config.max_registers,
    )  # fmt: skip


def first_pair(label_offset: int | None, text: Tensor) -> int:
    """Column of the first row's pair: beyond the last where there are no pairs."""
    return text.shape[0] if label_offset is None else label_offset


class Strip(NamedTuple):
    """Rows [first, end) of the logits."""

    first: int
    end: int
    first_program: int  # among those of all strips
    programs: int  # one for each tile and, after those, in the sigmoid loss for each PAIRS pairs


class Sweep:
    """A walk over the logits in strips of rows: tiles of gradients by logits, then two matrix products per strip."""

    def __init__(self, image: Tensor, text: Tensor, label_offset: int | None, pass_: str):
        self.image, self.text, self.first_pair = image, text, first_pair(label_offset, text)
        config = self.config = config_of(image, pass_)
        self.operands = operands(image, text, config)
        self.matrices = matrices(*self.operands, config)
        self.options = options(config, image)
        images, texts = image.shape[0], text.shape[0]
        self.pairs = 0 if label_offset is None else images
        height = max(WORKSPACE_BYTES // (texts * image.element_size() * config.block_m), 1) * config.block_m
        self.strips, self.programs = [], 0
        for first in range(0, images, height):
            end = min(first + height, images)
            tiles = cdiv(end - first, config.block_m) * cdiv(texts, config.block_n)
            pairs = cdiv(end - first, PAIRS) if self.pairs and pass_ == "sigmoid" else 0
            self.strips.append(Strip(first, end, self.programs, tiles + pairs))
            self.programs += tiles + pairs

    def parts(self, more: int = 0) -> Tensor:
        """Room for one partial sum of every program of the strips, and `more`."""
        return self.image.new_empty(self.programs + more, dtype=torch.float32)

    def run(
        self,
        launch: Callable[[Strip, Tensor | TensorDescriptor | None, int], None],
        pair_grad: Tensor,
        logit_scale: Tensor,
        store_scale: Tensor | None,
        needs_image: bool,
        needs_text: bool,
        dtype: torch.dtype,
        pair_parts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Give the gradients of image and text as `dtype`, of no elements where not needed.

        pair_parts: takes what each PAIRS pairs add to the gradient of the scale.
        """
        image, text = self.image, self.text
        image_operand, text_operand = self.operands
        grad_image, grad_text = (
            x.new_empty(x.shape if needed else (0, 0), dtype=dtype)
            for x, needed in ((image, needs_image), (text, needs_text))
        )
        image_product = text_product = logit_scale  # any pointer: not read where not needed
        # One for all strips: a new one for each would exist beside the last.
        needed = needs_image or needs_text
        workspace = aligned_empty(image, self.strips[0].end if needed else 0, text.shape[0])
        for strip in self.strips:
            rows = strip.end - strip.first
            grad_logit = workspace[:rows]
            block = self.config.block_m, self.config.block_n // 4
            launch(strip, matrix(grad_logit, self.config, *block) if needed else None, workspace.stride(0))
            if needs_image:
                image_product = product(grad_logit, text_operand)
            if needs_text:
                of_strip = grad_logit.T, image_operand[strip.first : strip.end]
                if strip.first == 0:
                    text_product = product(*of_strip)
                else:
                    add_product(text_product, *of_strip)
            last = strip is self.strips[-1]
            rows, cols = rows * needs_image, text.shape[0] * (needs_text and last)
            pairs = self.pairs if last and pair_parts is not None else 0
            blocks = sum(cdiv(n, PAIRS) for n in (rows, cols, pairs))
            if blocks:
                vectors.finish_kernel[(blocks, cdiv(image.shape[1], 128))](
                    image_product, text_product, image, text, pair_grad, logit_scale, store_scale,
                    grad_image, grad_text, logit_scale if pair_parts is None else pair_parts,
                    strip.first, rows, cols, pairs, image.shape[0], text.shape[0], image.shape[1], self.first_pair,
                    BLOCK=PAIRS, BLOCK_D=128,
                )  # fmt: skip
        return grad_image, grad_text


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, out in float32."""
    if a.dtype == torch.float32 or not a.is_cuda:
        out.addmm_(a.float(), b.float())
    else:
        torch.ops.aten.addmm.dtype_out(out, a, b, torch.float32, out=out)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
