"""contrastive_lse and its backward in Triton; the kernels are in contrastive_tiles.py.

Forward: 2 B T D operations, tiles of logits live in registers only. Backward: the tiles again, their gradient rounded to the
features' dtype in strips of rows within a workspace, and two plain matrix products per strip with float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import contrastive_tiles as tiles

FORWARD_STRIP = 8192  # rows whose partial sums exist at one time
WORKSPACE_BYTES = 256 * 2**20  # of the gradient by logits


class Config(NamedTuple):
    """Tile sizes and how they run."""

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int


def config_for(dtype: torch.dtype, width: int, capability: int, pass_: str) -> Config:
    """Choose tiles by a plain rule: autotuning would recompile for every batch size and differ between runs.

    pass_ is "forward", "backward" or "sigmoid". These compile without spills for compute capability 8.0, 9.0, 10.0 and 12.0; none was timed on a GPU yet.
    """
    if dtype == torch.float32:
        return Config(64, 64, 32, 4, 2)
    block_n = 64 if pass_ == "sigmoid" or (pass_ == "backward" and capability == 100) else 128
    return Config(128, block_n, 64 if width > 32 else 32, 8, 3)


def contrastive_lse(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse` (see cfmvit.ops.reference.contrastive) of bf16, fp16 or fp32 features."""
    image, text = image.contiguous(), text.contiguous()
    (images, width), texts = image.shape, text.shape[0]
    config = _config(image, "forward")
    vector = lambda *shape: image.new_empty(shape, dtype=torch.float32)
    positive = _pairs(image, text, logit_scale, label_offset)
    first_pair = _first_pair(label_offset, text)
    image_lse, text_lse = vector(images), vector(texts)
    with_max = text_groups is not None
    groups = (image_groups, text_groups) if with_max else (image, image)
    image_max, text_max = vector(images if with_max else 0), vector(texts if with_max else 0)

    strips = _cdiv(images, FORWARD_STRIP)
    col_lse, col_max = vector(strips, texts), vector(strips if with_max else 0, texts)
    tiles_n = _cdiv(texts, config.block_n)
    for i in range(strips):
        first, end = i * FORWARD_STRIP, min((i + 1) * FORWARD_STRIP, images)
        strip, tiles_m = end - first, _cdiv(end - first, config.block_m)
        row_part, col_part = vector(tiles_n, strip), vector(tiles_m, texts)
        row_max_part = torch.empty_like(row_part) if with_max else row_part
        col_max_part = torch.empty_like(col_part) if with_max else col_part
        tiles.lse_fwd_kernel[(tiles_m * tiles_n,)](
            image, text, logit_scale, *groups, row_part, col_part, row_max_part, col_max_part,
            first, end, strip, texts, width, first_pair, WITH_MAX=with_max, **_options(config, image),
        )  # fmt: skip
        _merge(row_part, image_lse[first:end], to_natural=True)
        _merge(col_part, text_lse if strips == 1 else col_lse[i], to_natural=strips == 1)
        if with_max:
            _merge(row_max_part, image_max[first:end], is_max=True, to_natural=True)
            _merge(col_max_part, text_max if strips == 1 else col_max[i], is_max=True, to_natural=strips == 1)
    if strips > 1:
        _merge(col_lse, text_lse, to_natural=True)
        if with_max:
            _merge(col_max, text_max, is_max=True, to_natural=True)
    return positive, image_lse, text_lse, image_max, text_max


def contrastive_lse_backward(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_lse: Tensor,
    text_lse: Tensor,
    grad_positive: Tensor,
    grad_image_lse: Tensor,
    grad_text_lse: Tensor,
    needs_image: bool,
    needs_text: bool,
    full_precision: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cfmvit::contrastive_lse_backward`."""
    image, text = image.contiguous(), text.contiguous()
    grad_positive, row_grad, col_grad = (
        x.float().contiguous() for x in (grad_positive, grad_image_lse, grad_text_lse)
    )
    store_scale = _store_scale(image.dtype, row_grad, col_grad)
    sweep = _Sweep(image, text, label_offset, "backward")
    grad_scale = sweep.sums(1)[0]

    def launch(tiles_of_strip: int, i: int, first: int, end: int, grad_logit: Tensor) -> None:
        tiles.lse_bwd_kernel[(tiles_of_strip,)](
            image, text, logit_scale, image_lse, text_lse, row_grad, col_grad, store_scale, grad_logit, grad_scale[i],
            first, end, text.shape[0], image.shape[1], sweep.first_pair,
            WITH_GRAD=needs_image or needs_text, **sweep.options,
        )  # fmt: skip

    grad_image, grad_text = sweep.run(
        launch, grad_positive, logit_scale, store_scale, needs_image, needs_text,
        torch.float32 if full_precision else image.dtype,
    )  # fmt: skip
    pairs = _pairs(image, text, torch.ones_like(logit_scale), label_offset)
    total = grad_scale.sum(dtype=torch.float64) + (pairs.double() * grad_positive).sum()
    return grad_image, grad_text, total.to(logit_scale.dtype)


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    label_offset: int | None,
    needs_image: bool,
    needs_text: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `cfmvit::sigmoid_loss` (see cfmvit.ops.reference.contrastive) and its gradients in one sweep."""
    image, text = image.contiguous(), text.contiguous()
    sweep = _Sweep(image, text, label_offset, "sigmoid")
    losses, grad_scale, grad_bias = sweep.sums(3)
    # A sigmoid is at most 1: float16 needs no more than a constant to keep small ones out of its subnormals.
    store_scale = image.new_full((), 2.0**13 if image.dtype == torch.float16 else 1.0, dtype=torch.float32)

    def launch(tiles_of_strip: int, i: int, first: int, end: int, grad_logit: Tensor) -> None:
        tiles.sigmoid_kernel[(tiles_of_strip,)](
            image, text, logit_scale, logit_bias, store_scale, grad_logit, losses[i], grad_scale[i], grad_bias[i],
            first, end, text.shape[0], image.shape[1], sweep.first_pair,
            WITH_GRAD=needs_image or needs_text, **sweep.options,
        )  # fmt: skip

    pairs = _pairs(image, text, torch.ones_like(logit_scale), label_offset)
    logits = pairs * logit_scale + logit_bias
    pair_grad = -torch.sigmoid(-logits)
    grad_image, grad_text = sweep.run(launch, pair_grad, logit_scale, store_scale, needs_image, needs_text)
    total = lambda parts, of_pairs: (
        parts.sum(dtype=torch.float64) + of_pairs.sum(dtype=torch.float64)
    ).float()
    return (
        total(losses, -F.logsigmoid(logits)),
        grad_image,
        grad_text,
        total(grad_scale, pair_grad * pairs),
        total(grad_bias, pair_grad),
    )


class _Sweep:
    """A walk over the logits in strips of rows: tiles of gradients by logits, then two matrix products per strip."""

    def __init__(self, image: Tensor, text: Tensor, label_offset: int | None, pass_: str):
        self.image, self.text, self.first_pair = image, text, _first_pair(label_offset, text)
        config = _config(image, pass_)
        self.options = _options(config, image)
        self.block_m, self.tiles_n = config.block_m, _cdiv(text.shape[0], config.block_n)
        fitting = WORKSPACE_BYTES // (text.shape[0] * image.element_size() * config.block_m)
        self.height = max(fitting, 1) * config.block_m

    def sums(self, count: int) -> Tensor:
        """Zeros for the partial sums of every tile: (count, strips, tiles of a strip)."""
        strips = _cdiv(self.image.shape[0], self.height)
        shape = (count, strips, _cdiv(self.height, self.block_m) * self.tiles_n)
        return self.image.new_zeros(shape, dtype=torch.float32)

    def run(
        self,
        launch: Callable[[int, int, int, int, Tensor], None],
        pair_grad: Tensor,
        logit_scale: Tensor,
        store_scale: Tensor,
        needs_image: bool,
        needs_text: bool,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Give the gradients of image and text as `dtype`, of no elements where not needed."""
        image, text, shift = self.image, self.text, self.first_pair
        like = lambda x, needed: x.new_empty(x.shape if needed else (0, 0), dtype=dtype)
        grad_image, grad_text = like(image, needs_image), like(text, needs_text)
        text_product = torch.zeros_like(grad_text, dtype=torch.float32)
        finish = lambda *args, **options: _finish(*args, logit_scale, store_scale, **options)
        for i, first in enumerate(range(0, image.shape[0], self.height)):
            end = min(first + self.height, image.shape[0])
            grad_logit = image.new_empty(end - first if needs_image or needs_text else 0, text.shape[0])
            launch(_cdiv(end - first, self.block_m) * self.tiles_n, i, first, end, grad_logit)
            if needs_image:
                product = _product(grad_logit, text)
                finish(product, text, pair_grad[first:end], grad_image[first:end], first + shift, by_row=True)
            if needs_text:
                _add_product(text_product, grad_logit.T, image[first:end])
        if needs_text:
            finish(text_product, image, pair_grad, grad_text, -shift, by_row=False)
        return grad_image, grad_text


def _config(features: Tensor, pass_: str) -> Config:
    capability = 80
    if features.is_cuda:
        major, minor = torch.cuda.get_device_capability(features.device)
        capability = 10 * major + minor
    return config_for(features.dtype, features.shape[1], capability, pass_)


def _options(config: Config, features: Tensor) -> dict:
    tf32 = features.is_cuda and torch.get_float32_matmul_precision() != "highest"
    return dict(
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_D=config.block_d, GROUP_M=8,
        EVEN_D=features.shape[1] % config.block_d == 0, PRECISION="tf32" if tf32 else "ieee",
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def _first_pair(label_offset: int | None, text: Tensor) -> int:
    return text.shape[0] if label_offset is None else label_offset


def _pairs(image: Tensor, text: Tensor, scale: Tensor, label_offset: int | None) -> Tensor:
    images, width = image.shape
    out = image.new_empty(0 if label_offset is None else images, dtype=torch.float32)
    if label_offset is None:
        return out
    tiles.pair_kernel[(_cdiv(images, 16),)](
        image, text, scale, out, images, width, label_offset, BLOCK=16, BLOCK_D=128
    )
    return out


def _merge(parts: Tensor, out: Tensor, *, to_natural: bool, is_max: bool = False) -> None:
    count, size = parts.shape
    tiles.merge_kernel[(_cdiv(size, 64),)](
        parts, out, count, size, IS_MAX=is_max, TO_NATURAL=to_natural, BLOCK_P=32, BLOCK=64
    )


def _finish(
    product: Tensor, other: Tensor, pair_grad: Tensor, grad: Tensor, to_other: int, logit_scale: Tensor,
    store_scale: Tensor, *, by_row: bool,
) -> None:  # fmt: skip
    rows, width = product.shape
    tiles.finish_kernel[(_cdiv(rows, 16), _cdiv(width, 128))](
        product, other, pair_grad, logit_scale, store_scale, grad, rows, other.shape[0], width, to_other,
        PAIR_BY_ROW=by_row, BLOCK=16, BLOCK_D=128,
    )  # fmt: skip


def _store_scale(dtype: torch.dtype, row_grad: Tensor, col_grad: Tensor) -> Tensor:
    """Bring float16 gradients by logits to at most 2^14, on the device; the other dtypes have range enough."""
    if dtype != torch.float16:
        return row_grad.new_ones(())
    largest = torch.maximum(row_grad.abs().amax(), col_grad.abs().amax())
    return torch.where(largest > 0, 2.0**13 / largest, 1.0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == torch.float32 or not a.is_cuda:
        out.addmm_(a.float(), b.float())
    else:
        torch.ops.aten.addmm.dtype_out(out, a, b, torch.float32, out=out)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
