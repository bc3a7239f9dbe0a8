"""The gradients of the Triton kernels stay exact where they are rounded, cancel, or come from logits of any size."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops.contrastive import reference
from cfmvit.triton_kernels import contrastive, contrastive_config

from .interpreted_setting import (  # noqa: F401  # fixtures among them
    _small_blocks,
    check,
    descriptors,
    features,
    long,
    lse_of,
    products_rounded_once,
    rounded_to_bfloat16,
)

# The interpreter is numpy, which warns of log2(0) for rows without negatives.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


def test_features_of_any_length_take_the_shift_of_each_row() -> None:
    lengths = torch.linspace(0.01, 12, 150)[:, None]
    image, text = features(150, 16, torch.float32, 0) * lengths, features(150, 16, torch.float32, 1) * 8
    check(image, text, 30.0, 0, 1e-3)  # logits of 2,000, which float32 holds to 1e-4


@pytest.mark.parametrize("small", ["image", "text"])
def test_one_row_or_column_far_below_the_others_takes_its_own_shift(small: str) -> None:
    lengths = torch.full((2, 40, 1), 8.0)
    lengths[["image", "text"].index(small), 5] *= 0.01
    image, text = F.normalize(torch.ones(40, 16), dim=1) * lengths
    check(image, text, 30.0, 0, 1e-3)


def test_logits_far_below_zero_beside_an_empty_end() -> None:
    """Columns beyond the end, whose similarities are zero, must not stand for a shift."""
    image = F.normalize(torch.ones(40, 16), dim=1)
    text = -image[:1].repeat(45, 1)
    check(image, text, 300.0, 2, 1e-3)  # the gradient of the scale cancels


@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_probable_pairs_keep_their_gradient(scale: float) -> None:
    """The gradient of pairs with a probability of almost one must not drown in the rounding of the stored one."""
    image = features(140, 64, torch.float16, 0)
    text = F.normalize(image.float() + 0.3 * features(140, 64, torch.float32, 1), dim=1).half()
    check(image, text, scale, 0, 3e-3)


@pytest.mark.parametrize(
    "scale, cosine",
    [
        (14.3, 0.5),
        (100.0, 0.2),
        *(pytest.param(*x, marks=long) for x in ((14.3, 0.2), (30, 0.2), (30, 0.5), (100, 0.5))),
    ],
)
@pytest.mark.usefixtures("rounded_to_bfloat16")
def test_trained_pairs_in_bfloat16(scale: float, cosine: float) -> None:
    """The interpreter knows no bfloat16: its numbers in float32, and its two roundings, of the gradients by logits that the
    matrix products take and of the result, are bfloat16's.
    """
    rounded = lambda x: x.bfloat16().float()
    image, noise = (features(256, 128, torch.float32, seed) for seed in (1, 2))
    image = F.normalize(image, dim=1)
    noise = F.normalize(noise - (noise * image).sum(1, keepdim=True) * image, dim=1)
    image, text = rounded(image), rounded(cosine * image + (1 - cosine**2) ** 0.5 * noise)
    logit_scale = torch.tensor(float(scale))
    leaves = [x.double().requires_grad_() for x in (image, text, logit_scale)]
    found = reference.contrastive_lse(*leaves, 0)[:5]
    loss = reference.pair_loss(*found, leaves[2], 0.5, 0.5, True)
    expected = torch.autograd.grad(loss, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        copies = [x.clone().requires_grad_() for x in (image, text, logit_scale)]
        logits, labels = copies[2] * copies[0] @ copies[1].T, torch.arange(len(image))
        eager = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    eager_grads = torch.autograd.grad(eager, copies)

    actual, *vectors = contrastive.info_nce(image, text, logit_scale, 0, 0.5, 0.5, True)
    torch.testing.assert_close(actual.double(), loss.detach(), rtol=1e-5, atol=0)
    args = (torch.ones(()), image, text, logit_scale, 0, *vectors, True, True)
    grads = contrastive.info_nce_backward(*args)
    error = lambda x, e: float((x.double() - e).norm() / e.norm())
    for ours, theirs, e in zip([*map(rounded, grads[:2]), grads[2]], eager_grads, expected, strict=True):
        assert error(ours, e) <= error(theirs, e)
        assert error(ours, e) < 2e-3  # of which rounding the result alone takes 1.7e-3


def as_tf32(x: Tensor) -> Tensor:
    """The nearest number of eleven significant bits, ties away from zero."""
    fraction, exponent = x.double().frexp()
    return ((fraction.abs() * 2**11 + 0.5).floor() * fraction.sign() / 2**11).ldexp(exponent).float()


def test_tf32_rounds_rather_than_truncates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's products are exact, so that they are those of features rounded to TF32, the pairs among them."""
    monkeypatch.setattr(contrastive_config, "precision_of", lambda features: "tf32")
    image, text = features(150, 40, torch.float32, 0), features(170, 40, torch.float32, 1)
    ties = torch.tensor([1 + 2**-11, -1 - 3 * 2**-11, 0.0, -0.0, float("inf"), float("nan")]).repeat(150, 1)
    ties[:, 2] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a NaN that would become -0
    config = contrastive_config.config_of(text, "forward")
    found = contrastive_config.operands(ties, text, config)
    expected = [1 + 2**-10, -1 - 2**-9, float("nan"), -0.0, float("inf"), float("nan")]
    torch.testing.assert_close(found[0][-1], torch.tensor(expected), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[1], as_tf32(text))

    scale, ones = torch.tensor(50.0), torch.ones(150)
    found = contrastive.contrastive_lse(image, text, scale, 20)
    exact = reference.contrastive_lse(as_tf32(image).double(), as_tf32(text).double(), scale.double(), 20)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-6, atol=1e-6)
    for at in (1, 3):
        lses = (lse_of(scale, *x[at : at + 2]) for x in (found, exact))
        torch.testing.assert_close(*lses, rtol=1e-5, atol=1e-5)
    args = (20, found[1], found[3], -ones, ones / found[2], torch.ones(170) / found[4])
    grads = contrastive.contrastive_lse_backward(image, text, scale, *args, True, True)
    exact = reference.contrastive_lse_backward(
        as_tf32(image).double(), as_tf32(text).double(), scale.double(), *(
            x.double() if isinstance(x, Tensor) else x for x in args
        )
    )  # fmt: skip
    for a, e in zip(grads[:2], exact, strict=False):
        assert (a.double() - e).norm() < 2e-4 * e.norm()  # of the gradients by logits, which are rounded too


def plain_gradients(leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """By images, texts and scale, of two dense cross-entropies."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    logits, labels = leaves[2] * leaves[0] @ leaves[1].T, torch.arange(len(leaves[0]))
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return torch.autograd.grad(loss, leaves)


def gradients_of_size(scale: float, seed: int) -> tuple[tuple[Tensor, ...], ...]:
    """Ours, plain float32's and the exact ones."""
    tensors = *(features(150, 32, torch.float32, seed + i) for i in range(2)), torch.tensor(scale)
    _, *vectors = contrastive.info_nce(*tensors, 0, 0.5, 0.5, True)
    ours = contrastive.info_nce_backward(torch.ones(()), *tensors, 0, *vectors, True, True)
    return ours, plain_gradients(tensors), plain_gradients([x.double() for x in tensors])


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e6, 1e10, 1e15, -1e4])
@pytest.mark.usefixtures("products_rounded_once")
def test_gradients_are_exact_for_logits_of_any_size(scale: float) -> None:
    """No worse than plain float32 with the whole matrix, by a factor of two where that is exact to 1e-5.

    Of logits of thousands the error is that of the one or two rows whose two largest almost tie, and is the similarities' own:
    in a single draw, roundings of products differ by luck alone. The next test has those of NumPy, over several draws.
    """
    error = lambda x, e: float((x.double() - e).norm() / e.norm())
    for a, b, e in zip(*gradients_of_size(scale, 0), strict=True):
        assert a.isfinite().all()
        assert error(a, e) <= max(error(b, e), min(2 * error(b, e), 1e-5), 2e-7)


@long
@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_over_several_draws_logits_of_thousands_are_as_exact_as_plain_ones(scale: float) -> None:
    """1.01 of plain float32's at 1e4, though single draws go from 0.3 to 7 times; 0.25 where products are rounded once."""
    squares = torch.zeros(2)
    for seed in range(0, 16, 2):
        ours, plain, exact = gradients_of_size(scale, seed)
        squares += torch.tensor([float((x[0] - exact[0]).square().sum()) for x in (ours, plain)])
    assert squares[0] <= 1.2**2 * squares[1]


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("rows", [90, 260])
@pytest.mark.usefixtures("rounded_to_bfloat16")
def test_gradients_of_features_that_collapsed_cancel(rows: int, texts: int) -> None:
    """Texts that are all equal, or each one of two far apart, in one block and over blocks of both rows and columns."""
    image = features(rows, 32, torch.float32, 0).bfloat16().float()
    text = features(texts, 32, torch.float32, 1).bfloat16().float().repeat_interleave(rows // texts, 0)
    image = image if texts == 1 else text
    scale = torch.tensor(100.0)
    _, *vectors = contrastive.info_nce(image, text, scale, 0, 1.0, 0.0, False)
    grad, *_ = contrastive.info_nce_backward(torch.ones(()), image, text, scale, 0, *vectors, True, True)
    assert grad.abs().max() < 2e-5  # of 100: some roundings of float32; without the residuals 0.3
    _, *vectors = contrastive.info_nce(text, image, scale, 0, 0.0, 1.0, False)
    _, grad, _ = contrastive.info_nce_backward(torch.ones(()), text, image, scale, 0, *vectors, True, True)
    assert grad.abs().max() < 2e-5
