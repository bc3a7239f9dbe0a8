"""The reconstruction family's CUDA kernels, emulated, against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit import ops

from ..ops.families import TOLERANCES, strided
from .emulator import DTYPES, WIDTHS, Emulator, assert_matches, rand

B, N = 3, 13
INDEX = ops.random_masking(B, N, 0.6, generator=torch.Generator().manual_seed(5)).masked
# Rows longer than what a warp holds in registers.
LONG = 1601


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def check_cosine(reconstruction: Emulator, inputs: dict[str, Any], lead: int = 0) -> None:
    """Compare losses and the gradient of pred with the reference's."""
    pred, target, index = inputs["pred"], inputs["target"], inputs.get("index")
    found = reconstruction("masked_cosine_loss", {"eps": 1e-8, **inputs}, lead=lead)["losses"]
    exact = pred.double().requires_grad_()
    losses = ops.masked_cosine_loss(exact, target.double(), index, reduction="none", impl="reference")
    assert found.dtype == wide(pred.dtype)
    assert_matches(found, losses.detach())
    grad_output = rand(*losses.shape, dtype=found.dtype, seed=7)
    (expected,) = torch.autograd.grad(losses, exact, grad_output.double())
    given = {"grad": grad_output, "eps": 1e-8, **inputs}
    back = reconstruction("masked_cosine_loss_backward", given, lead=lead)
    assert_matches(back["grad_pred"], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [*WIDTHS, LONG])
def test_masked_cosine_loss(reconstruction: Emulator, width: int, dtype: torch.dtype) -> None:
    inputs = {"pred": rand(B, N, width, dtype=dtype), "target": rand(B, N, width, dtype=dtype, seed=1)}
    check_cosine(reconstruction, {**inputs, "index": INDEX}, lead=width % 2)
    check_cosine(reconstruction, inputs)


@pytest.mark.parametrize("width", [32, 33, 800, 1600])
@pytest.mark.parametrize(
    ("pred", "target"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_pred_and_target_of_different_dtypes(
    reconstruction: Emulator, pred: torch.dtype, target: torch.dtype, width: int
) -> None:
    inputs = {"pred": rand(B, N, width, dtype=pred), "target": rand(B, N, width, dtype=target, seed=1)}
    check_cosine(reconstruction, {**inputs, "index": INDEX.int()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_anywhere_in_memory(reconstruction: Emulator, dtype: torch.dtype) -> None:
    pred, target = strided(rand(B, N, 48, dtype=dtype)), strided(rand(B, N, 48, dtype=dtype, seed=1))
    for lead in (0, 1):
        check_cosine(
            reconstruction, {"pred": pred, "target": target, "index": INDEX.t().contiguous().t()}, lead
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [33, 64, LONG - 1, LONG])
def test_gradient_of_a_projection(reconstruction: Emulator, width: int, dtype: torch.dtype) -> None:
    """It overwrites pred; the losses' bits are those of the forward; columns are summed before rounding where registers hold them."""
    rows, rest = 150, 70
    pred, target = rand(1, rows, width, dtype=dtype), strided(rand(1, rows, width, dtype=dtype, seed=1))
    grad_output = rand(1, rows, dtype=wide(dtype), seed=7)
    given = {"pred": pred, "target": target, "eps": 1e-8}
    found = reconstruction("projection_gradient", {**given, "grad": grad_output, "rest": rest})
    assert torch.equal(found["losses"], reconstruction("masked_cosine_loss", given)["losses"])
    exact = pred.double().requires_grad_()
    losses = ops.masked_cosine_loss(exact, target.double(), reduction="none", impl="reference")
    (expected,) = torch.autograd.grad(losses, exact, grad_output.double())
    assert_matches(found["grad_pred"], expected)
    chunks = [F.pad(x, (0, 0, 0, 192 - len(x))).unflatten(0, (3, 64)) for x in expected[0].split(rows - rest)]
    partial = sum(chunks).sum(1)
    bounds = {"atol": 1e-5, "rtol": 1e-5} if width <= 64 else TOLERANCES[dtype]
    torch.testing.assert_close(found["partial"].double(), partial, **bounds)


def test_zero_vectors_and_indices_that_no_check_saw(reconstruction: Emulator) -> None:
    """Zero vectors have loss 1 and no gradient, out of range counts as zero vectors, repeated entries add up."""
    pred, target = rand(1, 4, 8, dtype=torch.float32), rand(1, 4, 8, dtype=torch.float32, seed=1)
    pred[0, 0], target[0, 1] = 0, 0
    index = torch.tensor([[0, 1, -1, 2, 2, 9]])
    inputs = {"pred": pred, "target": target, "index": index, "eps": 1e-8}
    losses = reconstruction("masked_cosine_loss", inputs)["losses"]
    assert losses[0, [0, 1, 2, 5]].tolist() == [1.0] * 4
    grad_output = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    back = reconstruction("masked_cosine_loss_backward", {**inputs, "grad": grad_output})["grad_pred"][0]
    assert (back[[0, 1, 3]] == 0).all()
    exact = pred[:, 2:3].double().requires_grad_()
    loss = 9 * ops.masked_cosine_loss(exact, target[:, 2:3].double(), reduction="sum", impl="reference")
    assert_matches(back[2], torch.autograd.grad(loss, exact)[0][0, 0])


def test_no_rows(reconstruction: Emulator) -> None:
    none = torch.zeros(B, 0, dtype=torch.int64)
    check_cosine(reconstruction, {"pred": rand(B, N, 8), "target": rand(B, N, 8), "index": none})
    check_cosine(reconstruction, {"pred": rand(0, N, 8), "target": rand(0, N, 8)})


def check_pixels(
    reconstruction: Emulator,
    pred: Tensor,
    images: Tensor,
    index: Tensor,
    size: int,
    normalize: bool,
    lead: int,
) -> None:
    given = {"pred": pred, "images": images, "index": index, "patch_size": size, "normalize": int(normalize)}
    found = reconstruction("masked_pixel_loss", given, lead=lead)["losses"]
    exact = pred.double().requires_grad_()
    options: dict[str, Any] = {"normalize": normalize, "reduction": "none", "impl": "reference"}
    losses = ops.masked_pixel_loss(exact, images.double(), index, size, **options)
    torch.testing.assert_close(found.double(), losses.detach(), atol=1e-5, rtol=1e-5)
    grad_output = rand(*losses.shape, dtype=found.dtype, seed=7)
    (expected,) = torch.autograd.grad(losses, exact, grad_output.double())
    back = reconstruction("masked_pixel_loss_backward", {**given, "grad": grad_output}, lead=lead)[
        "grad_pred"
    ]
    assert_matches(back, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "channels"), [(2, 1), (4, 3), (7, 3), (14, 3), (16, 3), (18, 3), (18, 5), (32, 3), (36, 3)]
)
@pytest.mark.parametrize("every", [True, False], ids=["all_rows", "masked_rows"])
def test_masked_pixel_loss(
    reconstruction: Emulator, every: bool, size: int, channels: int, dtype: torch.dtype
) -> None:
    """Runs of four pixels, of two, and of one; patches shorter than a warp, and longer than its registers hold; any layout."""
    index = ops.random_masking(2, 12, 0.6, generator=torch.Generator().manual_seed(1)).masked
    images = rand(2, channels, 3 * size, 4 * size, dtype=wide(dtype), seed=3)
    rows = 12 if every else index.shape[1]
    pred = rand(2, rows, channels * size * size, dtype=dtype)
    check_pixels(reconstruction, pred, images, index, size, normalize=True, lead=0)
    last = images.contiguous(memory_format=torch.channels_last)
    check_pixels(reconstruction, strided(pred), last, index.int(), size, normalize=False, lead=1)


def test_patches_that_no_check_saw(reconstruction: Emulator) -> None:
    """Out of range is zero without a gradient; repeated entries add up."""
    images, pred = rand(1, 3, 8, 8, dtype=torch.float32), rand(1, 4, 48, dtype=torch.float32, seed=1)
    index = torch.tensor([[-1, 2, 2, 4, 1 << 40]])
    given = {"images": images, "pred": pred, "index": index, "patch_size": 4, "normalize": 1}
    losses = reconstruction("masked_pixel_loss", given)["losses"]
    assert (losses == 0).tolist() == [[True, False, False, True, True]]
    grad = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    back = reconstruction("masked_pixel_loss_backward", {**given, "grad": grad})["grad_pred"]
    exact = pred.double().requires_grad_()
    loss = 5 * ops.masked_pixel_loss(exact, images.double(), torch.tensor([[2]]), 4, impl="reference")
    assert_matches(back, torch.autograd.grad(loss, exact)[0])
