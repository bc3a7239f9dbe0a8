"""How the contrastive losses run on a GPU: sizes of blocks and tiles, which way a batch goes, and matrices as kernels take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import contrastive_vector_kernels as vectors

ALIGNMENT = 16  # bytes, of a matrix that a descriptor describes
PAIRS = 16  # of a program that takes pairs
SMALL_BATCH = 1024  # pairs whose sums one program merges, which saves a launch
FORWARD_ROWS = 8192  # of a row block of the forward
WORKSPACE_BYTES = 256 * 2**20  # of the gradient by logits in the backward


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

    pass_ is "forward", "backward" or "sigmoid". By what they compile to for compute capability 8.0, 9.0, 10.0 and 12.0: without
    spills, and on 9.0 with two programs to an SM, so that one multiplies while the other takes exponentials. Of four warps
    each, a thread sums twice the rows that it would with eight, and fewer partial sums go from thread to thread.
    """
    if dtype == torch.float32:
        return Config(64, 64, 32, 4, 2)
    family = capability // 10
    narrow = {8: ("backward", "sigmoid"), 10: ("backward", "sigmoid")}
    block_n = 64 if pass_ in narrow.get(family, ()) else 128
    block_d = 64 if width > 32 else 32
    return Config(128, block_n, block_d, 4 if family == 9 else 8, 3, family >= 9)


def config_of(features: Tensor, pass_: str) -> Config:
    """Tiles for these features on their device; without one, for the oldest."""
    capability = 80
    if features.is_cuda:
        major, minor = torch.cuda.get_device_capability(features.device)
        capability = 10 * major + minor
    return config_for(features.dtype, features.shape[1], capability, pass_)


def multiprocessors_of(features: Tensor) -> int:
    """Multiprocessors of their device; without one, as many as the oldest has."""
    return (
        torch.cuda.get_device_properties(features.device).multi_processor_count if features.is_cuda else 108
    )


def precision_of(features: Tensor) -> str:
    """Precision of matrix products of such features: that of PyTorch's own, IEEE unless TF32 is allowed there."""
    # torch.get_float32_matmul_precision raises where TF32 was allowed by this newer name.
    allowed = features.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed and features.dtype == torch.float32 else "ieee"


def rounds_gradients(features: Tensor) -> bool:
    """Whether the workspace holds gradients by logits in less than float32."""
    return features.dtype != torch.float32


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


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
