"""The contrastive losses under opcheck, on the meta device and under torch.func."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cfmvit.ops import info_nce, siglip_loss

from .contrastive_data import features

OP = torch.ops.cfmvit.contrastive_lse.default


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # opcheck's own access
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    image, text = features(5, 4, dtype).requires_grad_(), features(8, 4, dtype, seed=1).requires_grad_()
    scale = torch.tensor(
        3.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True
    )
    torch.library.opcheck(OP, (image, text, scale, 2, None, None))
    torch.library.opcheck(OP, (image, text, scale, None, None, None))
    torch.library.opcheck(OP, (image.detach(), text, scale, 2, torch.arange(5) % 2, torch.arange(8) % 3))
    lse = OP(image, text, scale, 2, None, None)
    grads = [torch.ones_like(lse[at]) for at in (0, 2, 4)]
    backward = torch.ops.cfmvit.contrastive_lse_backward.default
    args = (image, text, scale, 2, lse[1], lse[3], *grads, True, False, False)
    args = [x.detach() if isinstance(x, Tensor) else x for x in args]
    torch.library.opcheck(backward, tuple(args))
    positive, image_sum, text_sum = (torch.rand(5, dtype=scale.dtype).requires_grad_() for _ in range(3))
    shift = torch.randn(5, dtype=scale.dtype)
    pairs = (positive, shift, image_sum, shift, text_sum, scale)
    torch.library.opcheck(torch.ops.cfmvit.pair_loss.default, (*pairs, 0.5, 0.5, True))
    op, texts = torch.ops.cfmvit.info_nce.default, features(5, 4, dtype, seed=2).requires_grad_()
    torch.library.opcheck(op, (image, texts, scale, 0, 0.5, 0.5, True))
    torch.library.opcheck(op, (image.detach(), text, scale, 2, 1.0, 0.0, False))
    loss, *vectors = (x.detach() for x in op(image, text, scale, 2, 1.0, 0.0, False))
    backward = torch.ops.cfmvit.info_nce_backward.default
    args = (loss, image.detach(), text.detach(), scale.detach(), 2, *vectors, True, False)
    torch.library.opcheck(backward, args)


@pytest.mark.parametrize("loss", [info_nce, siglip_loss])
def test_meta_tensors_give_meta_results(loss: Callable[..., Tensor]) -> None:
    image, text, scale = (
        x.to("meta").requires_grad_() for x in (torch.ones(4, 3), torch.ones(4, 3), torch.tensor(1.0))
    )
    found = loss(image, text, scale)
    assert found.is_meta
    assert found.shape == ()
    found.backward()
    assert image.grad.is_meta


def test_groups_under_function_transforms() -> None:
    image, text, scale = features(6, 4), features(6, 4, seed=1), torch.tensor(3.0, dtype=torch.float64)
    ids = torch.arange(6) // 2
    loss = lambda image, ids=ids: info_nce(image, text, scale, group_ids=ids, impl="reference")
    leaf = image.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(image), expected)
    images, groups = torch.stack((image, 2 * image)), torch.stack((ids, ids.flip(0)))
    torch.testing.assert_close(
        torch.func.vmap(loss)(images, groups),
        torch.stack([loss(*x) for x in zip(images, groups, strict=True)]),
    )
