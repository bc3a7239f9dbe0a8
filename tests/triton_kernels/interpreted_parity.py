"""The Triton kernels of the contrastive losses equal the reference in float64, whatever shapes, dtypes and ways they take."""

from __future__ import annotations

import pytest
import torch

from cfmvit.bench import contrastive_forms
from cfmvit.bench.draw import Draw
from cfmvit.ops.contrastive import reference
from cfmvit.triton_kernels import contrastive, contrastive_config

from .interpreted_setting import TOLERANCES, _small_blocks, check, descriptors, features, variants  # noqa: F401  # fixtures among them

# The interpreter is numpy, which warns of log2(0) for rows without negatives.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


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
        (100, 400, 30, 24),  # one block of rows, several of columns
        (400, 100, None, 24),
    ],
    ids=lambda n: str(n),
)
def test_against_reference(
    rows: int, texts: int, label_offset: int | None, width: int, dtype: torch.dtype
) -> None:
    image, text = features(rows, width, dtype, 0), features(texts, width, dtype, 1)
    check(image, text, 20.0, label_offset, TOLERANCES[dtype])


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


def test_a_pair_that_another_equals_is_no_more_probable() -> None:
    image, text = (features(65, 32, torch.float32, seed).repeat(2, 1) for seed in (0, 1))
    groups = torch.arange(130)
    positive, *_, image_max, text_max = contrastive.contrastive_lse(
        image, text, torch.tensor(10.0), 0, groups, groups
    )
    assert (positive <= image_max).all()
    assert (positive <= text_max).all()
