"""The CUDA kernels that cut patches out of images, emulated, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfmvit import ops

from .emulator import DTYPES, Emulator, assert_matches, rand

MEAN, STD = torch.tensor([0.1, 0.2, 0.3]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
INDEX = torch.tensor([[5, 0], [2, 11]])
# A patch of one pixel, of no vector, of vectors of some dtypes, of vectors of all, of more than a warp's.
PATCH_SIZES = [1, 3, 4, 14, 16, 72]


def check_gather(
    patches: Emulator, images: Tensor, index: Tensor | None, size: int, dtype: torch.dtype, lead: int = 0
) -> None:
    given = {"images": images, "index": index, "patch_size": size, "like": torch.empty(1, dtype=dtype)}
    found = patches("gather_patches", {**given, "mean": MEAN, "std": STD}, lead=lead)["out"]
    exact = images if images.dtype == torch.uint8 else images.double()
    expected = ops.gather_patches(
        exact, index, size, mean=MEAN, std=STD, dtype=torch.float64, impl="reference"
    )
    assert_matches(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", PATCH_SIZES)
def test_gather_patches(masking_patches: Emulator, size: int, dtype: torch.dtype) -> None:
    """From bytes, float32 and the result's dtype; all patches, and some, at any address."""
    shape = (2, 3, 3 * size, 4 * size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    check_gather(masking_patches, pixels, None, size, dtype)
    check_gather(masking_patches, pixels, INDEX.int(), size, dtype, lead=1)
    check_gather(masking_patches, rand(*shape, dtype=torch.float32), INDEX, size, dtype)
    check_gather(masking_patches, rand(*shape, dtype=dtype), INDEX.t().contiguous().t(), size, dtype)


def test_strided_images(masking_patches: Emulator) -> None:
    """Channels, rows and samples with gaps between them."""
    room = torch.full((3, 4, 20, 40), float("nan"))
    images = room[::2, :3, 2:18, 4:28]
    images.copy_(rand(2, 3, 16, 24))
    check_gather(masking_patches, images, INDEX % 6, 8, torch.bfloat16)
    check_gather(masking_patches, images, INDEX % 6, 8, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", PATCH_SIZES)
def test_gradient_of_images(masking_patches: Emulator, size: int, dtype: torch.dtype) -> None:
    """Of all patches, of some, and of some named twice."""
    sizes = {"channels": 3, "height": 3 * size, "width": 4 * size}
    for index in (None, INDEX, torch.tensor([[5, 5, 0, 5], [0, 11, 11, 3]])):
        rows = 12 if index is None else index.shape[1]
        grad = rand(2, rows, 3 * size * size, dtype=dtype)
        given = {"grad": grad, "index": index, "patch_size": size, "std": STD, **sizes}
        found = masking_patches("gather_patches_backward", given)["grad_images"]
        images = torch.zeros(2, *sizes.values(), dtype=torch.float64, requires_grad=True)
        out = ops.gather_patches(images, index, size, std=STD, impl="reference")
        assert_matches(found, torch.autograd.grad(out, images, grad.double())[0])


def test_patches_out_of_range(masking_patches: Emulator) -> None:
    """They are zero, and give no gradient."""
    images, index = rand(1, 1, 4, 8, dtype=torch.float32), torch.tensor([[-1, 1, 2, 1 << 40]])
    given = {"images": images, "index": index, "patch_size": 4, "like": torch.empty(1)}
    found = masking_patches("gather_patches", given)["out"][0]
    assert not found[[0, 2, 3]].any()
    assert torch.equal(found[1], images[0, 0, :, 4:].flatten())
    grad = {"grad": torch.ones(1, 4, 16), "index": index, "patch_size": 4}
    back = masking_patches("gather_patches_backward", {**grad, "channels": 1, "height": 4, "width": 8})
    assert back["grad_images"].sum((0, 1, 2)).tolist() == [0.0] * 4 + [4.0] * 4


def test_no_patches(masking_patches: Emulator) -> None:
    for shape, index in (((0, 3, 8, 8), None), ((2, 3, 8, 8), INDEX[:, :0])):
        check_gather(masking_patches, rand(*shape), index, 4, torch.float32)
    given = {"grad": torch.ones(2, 0, 48), "index": INDEX[:, :0], "patch_size": 4}
    back = masking_patches("gather_patches_backward", {**given, "channels": 3, "height": 8, "width": 8})
    assert (back["grad_images"] == 0).all()
