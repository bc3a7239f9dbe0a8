"""info_nce where numbers are hard: trained pairs, logits of any size, features that collapsed, ties, NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cfmvit.ops import info_nce, siglip_loss
from cfmvit.ops.contrastive import reference

from .contrastive_data import eager_clip, features, loss_and_grads, relative, trained_pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cosine", [0.2, 0.3, 0.5])
@pytest.mark.parametrize("scale", [14.3, 30.0, 100.0])
def test_trained_pairs_are_at_least_as_exact_as_eager_autocast(
    scale: float, cosine: float, dtype: torch.dtype
) -> None:
    # Losses down to 5e-13: log_softmax is too coarse for those even in float64, hence not the dense cross-entropy.
    image, text = trained_pairs(512, 256, cosine)
    scale = torch.tensor(scale)
    expected = loss_and_grads(info_nce, image, text, scale.double(), impl="reference")
    ours = loss_and_grads(info_nce, image.to(dtype), text.to(dtype), scale)
    with torch.autocast("cpu", torch.bfloat16):
        eager = loss_and_grads(eager_clip, image.float(), text.float(), scale)
    assert relative(ours[0], expected[0]) < 1e-5
    for a, e, x in zip(ours[1:], eager[1:], expected[1:], strict=True):
        assert relative(a, x) <= relative(e, x)
        assert relative(a, x) < 2e-3


@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("loss", [info_nce, siglip_loss])
def test_bfloat16_gradients_lose_little_more_than_their_own_rounding(
    loss: Callable[..., Tensor], scale: float
) -> None:
    """Over several strips and blocks; at 100 a row's hard negatives weigh as much as its pair."""
    image, text = trained_pairs(1100, 256, 0.3)
    scale, options = torch.tensor(scale), {"logit_bias": torch.tensor(-10.0)}
    expected = loss_and_grads(loss, image, text, scale.double(), **options)
    ours = loss_and_grads(loss, image.bfloat16(), text.bfloat16(), scale, **options)
    for a, x in zip(ours[1:3], expected[1:3], strict=True):
        assert relative(a, x) < 1.2 * relative(x.bfloat16(), x)


def test_features_of_any_length() -> None:
    """Logits of +-10^4 would overflow or vanish with one shift for all rows; float32 holds them to about 0.002."""
    image, text = features(70, 16) * torch.linspace(0.01, 30, 70)[:, None], features(70, 16, seed=1) * 20
    scale = torch.tensor(100.0)
    expected = loss_and_grads(reference.info_nce, image, text, scale.double())
    for a, e in zip(loss_and_grads(info_nce, image.float(), text.float(), scale), expected, strict=True):
        assert relative(a, e) < 2e-3


def test_equal_features_are_not_counted_as_right() -> None:
    same = torch.ones(8, 4)
    loss, stats = info_nce(same, same, torch.tensor(1.0), return_stats=True)
    torch.testing.assert_close(loss, torch.tensor(8.0).log())
    assert stats.accuracy_image == stats.accuracy_text == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_features_give_a_nan_loss(bad: float) -> None:
    image, text, scale = (
        features(40, 4, torch.float32),
        features(40, 4, torch.float32, seed=1),
        torch.tensor(10.0),
    )
    image[3, 1] = bad
    loss, *grads = loss_and_grads(info_nce, image, text, scale)
    assert loss.isnan()
    assert grads[0][3].isnan().all()
    per_pair = info_nce(image, text, scale, direction="image_to_text", reduction="none")
    assert per_pair.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"return_stats": True}], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_pair_alone_hides_nothing(bad: float, options: dict[str, Any], impl: str) -> None:
    """A batch of one has no negatives and a loss of zero, but not where its logit is no number: as cross_entropy has it."""
    scale = torch.tensor(10.0)
    image, text = features(1, 4, torch.float32).abs(), features(1, 4, torch.float32, seed=1).abs()

    def first(*arguments: Tensor) -> Tensor:
        found = info_nce(*arguments, impl=impl, **options)
        return found[0] if isinstance(found, tuple) else found

    assert not loss_and_grads(first, image, text, scale)[0].any()
    image[0, 1] = bad
    expected = loss_and_grads(eager_clip, image, text, scale)
    for ours, theirs in zip(loss_and_grads(first, image, text, scale), expected, strict=True):
        assert theirs.isnan().all()
        assert not ours.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)], ids=str)
def test_pair_loss(weights: tuple[float, float], dtype: torch.dtype) -> None:
    """From losses that float32's log(1 + x) would round to zero, over blocks of pairs, and without a NaN of no weight."""
    generator = torch.Generator().manual_seed(0)
    positive, image_shift, text_shift = torch.randn(3, 2500, dtype=torch.float64, generator=generator)
    image_sum, text_sum = 1 + 30 * torch.rand(2, 2500, dtype=torch.float64, generator=generator)
    image_shift[0], image_sum[0] = float("-inf"), 0  # no negatives
    if 0.0 in weights:
        (image_shift, text_shift)[weights.index(0.0)][-1] = float("nan")
    tensors = [
        positive,
        image_shift,
        image_sum,
        text_shift,
        text_sum,
        torch.tensor(25.0, dtype=torch.float64),
    ]
    tensors = [x.to(dtype) for x in tensors]
    exact, leaves = [x.double() for x in tensors], [x.clone().requires_grad_() for x in tensors]
    expected = reference.pair_loss(*exact, *weights, True)
    actual, *_ = torch.ops.cfmvit.pair_loss.default(*leaves, *weights, True)
    tolerance = {torch.float32: 1e-7, torch.float64: 1e-14}[dtype]
    assert abs(actual.double() - expected) <= tolerance * expected
    differentiated = [0, 2, 4, 5]
    for at in differentiated:
        exact[at].requires_grad_()
    expected = torch.autograd.grad(
        3 * reference.pair_loss(*exact, *weights, True),
        [exact[at] for at in differentiated],
        materialize_grads=True,
    )
    found = torch.autograd.grad(3 * actual, [leaves[at] for at in differentiated])
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=2 * tolerance, atol=1e-30)
    with pytest.raises(
        RuntimeError, match=r"pair_loss: image_shift must have shape \(2499,\), got \(2500,\)"
    ):
        torch.ops.cfmvit.pair_loss.default(tensors[0][1:], *tensors[1:], *weights, True)


def worst_over_plain(image: Tensor, text: Tensor, scale: Tensor, **options) -> None:
    """Assert that gradients are no worse than plain float32's, by a factor of two where those are exact to 1e-5."""
    exact = loss_and_grads(eager_clip, image.double(), text.double(), scale.double())
    plain = loss_and_grads(eager_clip, image, text, scale)
    ours = loss_and_grads(info_nce, image, text, scale, **options)
    for a, b, e in zip(ours[1:], plain[1:], exact[1:], strict=True):
        assert a.isfinite().all()
        assert relative(a, e) <= max(relative(b, e), min(2 * relative(b, e), 1e-5), 2e-7)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e2, 1e4, 1e6, 1e10, 1e15, -1e3, -1e8])
def test_gradients_are_exact_for_logits_of_any_size(scale: float, impl: str) -> None:
    image, text = features(150, 48, torch.float32), features(150, 48, torch.float32, seed=1)
    worst_over_plain(image, text, torch.tensor(scale), impl=impl)
    if scale > 0:  # the same logits, from features that are not normalised
        worst_over_plain(image * scale**0.5, text * scale**0.5, torch.tensor(1.0), impl=impl)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("texts", [1, 2])
def test_gradients_of_features_that_collapsed_cancel(texts: int, dtype: torch.dtype, impl: str) -> None:
    """Texts that are all equal, or each one of two far apart: what images are drawn to is what they are pushed from."""
    image = features(90, 32, dtype)
    text = features(texts, 32, dtype, seed=1).repeat_interleave(90 // texts, 0)
    image = image if texts == 1 else text
    options = dict(direction="image_to_text", reduction="sum", impl=impl)
    _, grad, *_ = loss_and_grads(info_nce, image, text, torch.tensor(100.0), **options)
    assert grad.abs().max() < 2e-5  # a hundred roundings of float32


@pytest.mark.parametrize("scale", [10.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", ["native", "reference"])
def test_a_pair_that_another_equals_is_not_right(impl: str, dtype: torch.dtype, scale: float) -> None:
    """Every pair twice, over blocks of several sizes: the pair's sum and its double's are of the same bits."""
    image, text = (features(521, 70, dtype, seed=seed).repeat(2, 1) for seed in (0, 1))
    loss, stats = info_nce(image, text, torch.tensor(scale), return_stats=True, impl=impl)
    assert stats.accuracy_image == stats.accuracy_text == 0
    assert loss.isfinite()
    once, *_ = features(1, 70, dtype)
    collapsed = once.expand(300, 70)
    _, stats = info_nce(collapsed, collapsed, torch.tensor(scale), return_stats=True, impl=impl)
    assert stats.accuracy_image == stats.accuracy_text == 0
