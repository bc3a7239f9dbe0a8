"""The Triton kernels of the contrastive losses under Triton's interpreter, against the reference in float64.

Run by test_interpreted.py in a process of its own: TRITON_INTERPRET must be set before triton is imported. Blocks
are made small, so that every loop runs more than once; features lie between NaNs, so that a read out of bounds shows.

Time goes by tiles, each some tens of milliseconds: `long` are those combinations that a GPU is not given (float32 by
descriptors), or that differ from a short one in how matrices arrive alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.runtime import interpreter

from cfmvit.bench import contrastive_forms
from cfmvit.bench.draw import Draw
from cfmvit.ops.contrastive import reference
from cfmvit.triton_kernels import (
    contrastive,
    contrastive_config,
    contrastive_tiles,
)

# The interpreter is numpy, which warns of log2(0) for rows without negatives.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")

# float32: sums that cancel; float16: half an ulp of the stored gradients by logits and of the result.
TOLERANCES = {torch.float32: 5e-5, torch.float16: 1e-3}


long = pytest.mark.long


def variants(*more: Any) -> Any:
    """Every way to give matrices, dtype and value of `more`; short are one with each dtype, which share no value of `more`."""
    short = {(False, torch.float32, *more[:1]), (True, torch.float16, *more[-1:])}
    cases = itertools.product((False, True), TOLERANCES, *([more] if more else []))
    return [pytest.param(*case, marks=() if case in short else long) for case in cases]


@pytest.fixture(params=[pytest.param(False, id="pointers"), pytest.param(True, id="descriptors", marks=long)])
def descriptors(request: pytest.FixtureRequest) -> bool:
    """Whether matrices are given by descriptors."""
    return request.param


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch, descriptors: bool) -> None:
    monkeypatch.setattr(contrastive_config, "FORWARD_ROWS", 128)
    monkeypatch.setattr(contrastive_config, "WORKSPACE_BYTES", 200 * 128 * 2)
    config_for = contrastive_config.config_for
    monkeypatch.setattr(
        contrastive_config, "config_for", lambda *args: config_for(*args)._replace(descriptors=descriptors)
    )


def features(rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = F.normalize(torch.randn(rows, width, generator=generator), dim=1).to(dtype)
    guarded = torch.full((rows + 2, width), float("nan"), dtype=dtype)
    guarded[1:-1] = values
    return guarded[1:-1]


def lse_of(logit_scale: Tensor, shift: Tensor, total: Tensor) -> Tensor:
    """Log-sum-exps in float64."""
    return torch.where(
        total == 0, float("-inf"), logit_scale.double() * shift.double() + total.double().log()
    )


def check(image: Tensor, text: Tensor, scale: float, label_offset: int | None, tolerance: float) -> None:
    rows, texts = len(image), len(text)
    logit_scale = torch.tensor(float(scale))
    groups = torch.arange(rows) % 3, torch.arange(texts) % 5
    leaves = [x.double().requires_grad_() for x in (image, text, logit_scale)]
    expected = reference.contrastive_lse(*leaves, label_offset, *groups)
    actual = contrastive.contrastive_lse(image, text, logit_scale, label_offset, *groups)
    close = dict(rtol=1e-5, atol=2e-5 * max(1.0, scale / 20))
    for at in (0, 5, 6):
        torch.testing.assert_close(scale * actual[at].double(), scale * expected[at].detach(), **close)
    for at in (1, 3):
        lse = lse_of(logit_scale, *(x.detach() for x in expected[at : at + 2]))
        torch.testing.assert_close(lse_of(logit_scale, *actual[at : at + 2]), lse, **close)
    plain = contrastive.contrastive_lse(image, text, logit_scale, label_offset)
    assert all(torch.equal(a, e) for a, e in zip(plain[:5], actual[:5], strict=True))
    assert plain[5].shape == plain[6].shape == (0,)

    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(n, generator=generator) / 8 for n in (len(expected[0]), rows, texts)]
    total = (grads[0].double() * expected[0]).sum()
    for grad, x in zip(grads[1:], (expected[2], expected[4]), strict=True):
        total = total + (grad.double() * torch.where(x == 0, 1, x).log()).sum()
    expected_grads = torch.autograd.grad(total, leaves)
    by_sums = [g / torch.where(x == 0, 1, x) for g, x in zip(grads[1:], (actual[2], actual[4]), strict=True)]
    args = (image, text, logit_scale, label_offset, actual[1], actual[3], grads[0], *by_sums, True, True)
    actual_grads = contrastive.contrastive_lse_backward(*args)
    for a, e, x in zip(actual_grads, expected_grads, (image, text, logit_scale), strict=True):
        assert a.dtype == x.dtype
        assert (a.double() - e).norm() <= tolerance * e.norm()
    if image.dtype == torch.float32:
        return
    for a, e in zip(contrastive.contrastive_lse_backward(*args, True)[:2], actual_grads, strict=False):
        assert a.dtype == torch.float32
        assert torch.equal(a.to(e.dtype), e)


@pytest.mark.parametrize("descriptors, dtype", variants(), indirect=["descriptors"], ids=str)
@pytest.mark.parametrize(
    ("rows", "texts", "label_offset", "width"),
    [
        (1, 1, 0, 8),
        (1, 3, 1, 8),
        (31, 31, 0, 64),
        (33, 33, 0, 100),
        (130, 170, 30, 24),
        (257, 257, 0, 40),
        (300, 90, None, 24),
    ],
    ids=lambda n: str(n),
)
def test_against_reference(
    rows: int, texts: int, label_offset: int | None, width: int, dtype: torch.dtype
) -> None:
    image, text = features(rows, width, dtype, 0), features(texts, width, dtype, 1)
    check(image, text, 20.0, label_offset, TOLERANCES[dtype])


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


@pytest.mark.parametrize("pass_", contrastive_forms.PASSES)
def test_all_forms_of_the_benchmark_compute_the_same(pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive_forms, "interleaved", lambda runs, *_: {name: [1.0] for name in runs})
    draw = Draw(torch.float32, torch.device("cpu"))
    in_use = contrastive_config.config_of(torch.empty(70, 64), pass_)
    tiles = [form for form in contrastive_forms.TILES.values() if in_use._replace(**form) != in_use]
    others = {"forward": len(tiles), "loss": 1}.get(pass_, len(tiles) + len(contrastive_forms.BLOCKS))
    results = list(contrastive_forms.compare(pass_, 70, 64, draw, 1.0))
    assert len(results) == 1 + others
    assert all("failed" not in x and x["error"] < 1e-5 for x in results), results
    assert len(contrastive_forms.table(results).splitlines()) == 1 + len(results)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)], ids=str)
@pytest.mark.parametrize("rows", [1, 33, 2500])
def test_pair_loss(rows: int, weights: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(rows)
    positive, image_shift, text_shift = torch.randn(3, rows, generator=generator)
    image_sum, text_sum = 1 + 30 * torch.rand(2, rows, generator=generator)
    image_shift[0], image_sum[0] = float("-inf"), 0  # no negatives
    if 0.0 in weights:
        (image_shift, text_shift)[weights.index(0.0)][-1] = float(
            "nan"
        )  # of a direction that was not asked for
    tensors = positive, image_shift, image_sum, text_shift, text_sum, torch.tensor(12.0)
    leaves = [x.double().requires_grad_() for x in tensors]
    expected = reference.pair_loss(*leaves, *weights, True)
    expected.backward()
    actual, *grads = contrastive.pair_loss(*tensors, *weights, True)
    # A log-sum-exp's lead over its pair is rounded at the size of both.
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=3e-6, atol=0)
    for a, at in zip(grads, (0, 2, 4, 5), strict=True):
        e = torch.zeros_like(a) if leaves[at].grad is None else leaves[at].grad.float()
        torch.testing.assert_close(a, e, rtol=4e-6, atol=1e-12 if at < 5 else 1e-6)
    total, *_ = contrastive.pair_loss(*tensors, *weights, False)
    torch.testing.assert_close(total, actual * rows, rtol=1e-6, atol=0)


# More than eight tiles, the rows of a group, and than the 512 rows that one step of the merging program takes.
@pytest.mark.parametrize(
    "descriptors, dtype, most_small", variants(4096, 0), indirect=["descriptors"], ids=str
)
@pytest.mark.parametrize(
    ("rows", "texts", "label_offset", "weights"),
    [(1, 1, 0, (0.5, 0.5)), (33, 33, 0, (1.0, 0.0)), (140, 140, 0, (0.0, 1.0)), (521, 521, 0, (0.25, 0.5)), (40, 90, 20, (1.0, 0.0))],
    ids=str,
)  # fmt: skip
def test_info_nce(
    rows: int, texts: int, label_offset: int, weights: tuple[float, float], dtype: torch.dtype, most_small: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In one launch, in many, and with a gradient that arrives from above; bad features make a NaN of the loss."""
    monkeypatch.setattr(contrastive_config, "SMALL_BATCH", most_small)
    tensors = features(rows, 24, dtype, 0), features(texts, 24, dtype, 1), torch.tensor(20.0)
    leaves = [x.double().requires_grad_() for x in tensors]
    found = [x[:rows] for x in reference.contrastive_lse(*leaves, label_offset)[:5]]
    expected = reference.pair_loss(*found, leaves[2], *weights, True)
    found, *vectors = contrastive.info_nce(*tensors, label_offset, *weights, True)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    grads = contrastive.info_nce_backward(torch.tensor(-3.0), *tensors, label_offset, *vectors, True, True)
    expected_grads = torch.autograd.grad(-3 * expected, leaves)
    for a, e, x in zip(grads, expected_grads, tensors, strict=True):
        assert a.dtype == x.dtype
        assert (a.double() - e).norm() <= TOLERANCES[dtype] * e.norm()
    if rows > 150:
        return
    total, *_ = contrastive.info_nce(*tensors, label_offset, *weights, False)
    torch.testing.assert_close(total, rows * found, rtol=1e-6, atol=0)
    tensors[0][-1, 3] = float("nan")
    assert contrastive.info_nce(*tensors, label_offset, *weights, True)[0].isnan()


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


def test_frozen_towers_get_nothing() -> None:
    image, text = features(20, 16, torch.float32, 0), features(20, 16, torch.float32, 1)
    scale, ones = torch.tensor(5.0), torch.ones(20)
    _, image_shift, _, text_shift, *_ = contrastive.contrastive_lse(image, text, scale, 0)
    args = (image, text, scale, 0, image_shift, text_shift, ones, ones, ones)
    both = contrastive.contrastive_lse_backward(*args, True, True)
    only_image = contrastive.contrastive_lse_backward(*args, True, False)
    only_text = contrastive.contrastive_lse_backward(*args, False, True)
    assert torch.equal(only_image[0], both[0])
    assert only_image[1].numel() == only_text[0].numel() == 0
    assert torch.equal(only_text[1], both[1])
    none = contrastive.contrastive_lse_backward(*args, False, False)
    assert none[0].numel() == none[1].numel() == 0
    assert only_image[2] == only_text[2] == none[2] == both[2]


@pytest.mark.parametrize("descriptors, dtype, bias", variants(-10.0, 2.0), indirect=["descriptors"], ids=str)
@pytest.mark.parametrize(
    ("rows", "texts", "label_offset", "width"),
    [(1, 3, 1, 8), (33, 33, 0, 100), (257, 280, 20, 40), (130, 90, None, 24)],
    ids=lambda n: str(n),
)
def test_sigmoid_loss(
    rows: int, texts: int, label_offset: int | None, width: int, dtype: torch.dtype, bias: float
) -> None:
    tensors = [
        features(rows, width, dtype, 0), features(texts, width, dtype, 1), torch.tensor(10.0), torch.tensor(bias)
    ]  # fmt: skip
    leaves = [x.double().requires_grad_() for x in tensors]
    loss = reference.sigmoid_loss(*leaves, label_offset)
    loss.backward()
    actual, *grads = contrastive.sigmoid_loss(*tensors, label_offset, True, True)
    torch.testing.assert_close(actual.double(), loss.detach(), rtol=2e-6, atol=0)
    for a, leaf in zip(grads, leaves, strict=True):
        assert a.dtype == torch.float32
        assert (a.double() - leaf.grad).norm() <= TOLERANCES[dtype] * leaf.grad.norm()
    alone, none, also_none, *scalars = contrastive.sigmoid_loss(*tensors, label_offset, False, False)
    assert torch.equal(alone, actual)
    assert none.numel() == also_none.numel() == 0
    assert all(torch.equal(a, e) for a, e in zip(scalars, grads[2:], strict=True))


def test_nan_features_give_nan() -> None:
    image, text = features(40, 16, torch.float32, 0).clone(), features(40, 16, torch.float32, 1)
    image[3, 1] = float("nan")
    positive, _, image_sum, _, text_sum, *_ = contrastive.contrastive_lse(image, text, torch.tensor(5.0), 0)
    assert positive.isnan().nonzero().flatten().tolist() == [3]
    assert image_sum.isnan().nonzero().flatten().tolist() == [3]
    assert text_sum.isnan().sum() == 39


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


@pytest.fixture
def products_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's matrix products as exact as float32 can hold them."""

    def dot(self, a, b, d, precision, imprecise):
        exact = np.matmul(a.data, b.data, dtype=np.float64) + d.data
        return interpreter.TensorHandle(exact.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


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
    assert squares[0] <= 2**2 * squares[1]


def as_bfloat16(b_x: tl.tensor, dtype: tl.dtype) -> tuple[tl.tensor, tl.tensor]:
    """The nearest bfloat16, ties to even, held in float32: the interpreter's own numbers are not bfloat16's."""
    bits = b_x.to(tl.int32, bitcast=True)
    b_rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return b_rounded, b_rounded


@pytest.fixture
def rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 features, whose gradients by logits are rounded to bfloat16 as they are stored."""
    monkeypatch.setattr(contrastive_tiles, "rounded", as_bfloat16)
    monkeypatch.setattr(contrastive_config, "rounds_gradients", lambda features: True)


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


def test_a_pair_that_another_equals_is_no_more_probable() -> None:
    image, text = (features(65, 32, torch.float32, seed).repeat(2, 1) for seed in (0, 1))
    groups = torch.arange(130)
    positive, *_, image_max, text_max = contrastive.contrastive_lse(
        image, text, torch.tensor(10.0), 0, groups, groups
    )
    assert (positive <= image_max).all()
    assert (positive <= text_max).all()
