"""info_nce on one device: values, gradients, accuracy, memory, determinism, refusals."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops import info_nce
from cfmvit.ops.contrastive import reference

from .contrastive_data import features, loss_and_grads, relative

OP = torch.ops.cfmvit.contrastive_lse.default


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("direction", ["both", "image_to_text", "text_to_image"])
@pytest.mark.parametrize("rows", [1, 2, 31, 33, 127, 530], ids="B{}".format)
def test_equals_two_cross_entropies(rows: int, direction: str, impl: str) -> None:
    image, text, scale = (
        features(rows, 12),
        features(rows, 12, seed=1),
        torch.tensor(9.0, dtype=torch.float64),
    )
    ids = torch.arange(rows) % 7
    options_of_each = list(product((None, ids), (0.0, 0.1), ("mean", "sum", "none")))
    for group_ids, smoothing, reduction in options_of_each[:: 5 if rows > 200 else 1]:
        options = dict(
            direction=direction, group_ids=group_ids, label_smoothing=smoothing, reduction=reduction
        )
        expected = loss_and_grads(reference.info_nce, image, text, scale, **options)
        actual = loss_and_grads(info_nce, image, text, scale, impl=impl, **options)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("group_ids", [None, torch.arange(700) % 40], ids=["pairs", "groups"])
def test_more_texts_than_images(group_ids: Tensor | None) -> None:
    image, text, scale = features(130, 12), features(700, 12, seed=1), torch.tensor(9.0, dtype=torch.float64)
    options = dict(direction="image_to_text", label_offset=300, group_ids=group_ids, label_smoothing=0.2)
    expected = loss_and_grads(reference.info_nce, image, text, scale, **options)
    for a, e in zip(loss_and_grads(info_nce, image, text, scale, **options), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


# Gradients come back in the features' dtype: half an ulp of it, on top of float32 sums.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 3e-3}


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_low_precision_features(dtype: torch.dtype) -> None:
    image, text, scale = features(200, 24, dtype), features(200, 24, dtype, seed=1), torch.tensor(20.0)
    expected = loss_and_grads(reference.info_nce, image.double(), text.double(), scale.double())
    actual = loss_and_grads(info_nce, image, text, scale)
    assert [x.dtype for x in actual] == [torch.float32, dtype, dtype, torch.float32]
    assert relative(actual[0], expected[0]) < 1e-6
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert relative(a, e) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("rows", [1, 9, 47, 161], ids="B{}".format)
@pytest.mark.parametrize("width", [1, 7, 33, 520, 1051], ids="D{}".format)
def test_any_size(width: int, rows: int, dtype: torch.dtype) -> None:
    """Remainders of every block of the matrix products: of rows, of columns, and of what is summed over."""
    image, text, scale = features(rows, width, dtype), features(rows, width, dtype, seed=1), torch.tensor(7.0)
    expected = loss_and_grads(reference.info_nce, image.double(), text.double(), scale.double())
    for a, e in zip(loss_and_grads(info_nce, image, text, scale), expected, strict=True):
        rtol = TOLERANCES[dtype] if a.dtype == dtype else TOLERANCES[torch.float32]
        torch.testing.assert_close(a.double(), e, rtol=rtol, atol=rtol * float(e.abs().max()) + 1e-12)


def test_equals_open_clip() -> None:
    loss = pytest.importorskip("open_clip.loss").ClipLoss()
    image, text, scale = (
        features(96, 32, torch.float32),
        features(96, 32, torch.float32, seed=1),
        torch.tensor(14.3),
    )
    expected = loss_and_grads(loss, image, text, scale)
    for a, e in zip(loss_and_grads(info_nce, image, text, scale), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-5, atol=1e-6)
    local = pytest.importorskip("open_clip.loss").ClipLoss(local_loss=True, rank=1, world_size=3)
    labels = local.get_ground_truth(image.device, 32)
    ours = info_nce(image[:32], text, scale, direction="image_to_text", label_offset=32)
    torch.testing.assert_close(
        ours, F.cross_entropy(scale * image[:32] @ text.T, labels), rtol=2e-5, atol=1e-6
    )


def test_gradcheck() -> None:
    image, text = features(5, 4).requires_grad_(), features(8, 4, seed=1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def lses(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        positive, image_shift, image_sum, text_shift, text_sum, *_ = OP(image, text, scale, 2, None, None)
        # The gradient of a sum stands for that of its whole log-sum-exp.
        lses = (
            scale.detach() * shift + x.log()
            for shift, x in ((image_shift, image_sum), (text_shift, text_sum))
        )
        return positive, *lses

    assert torch.autograd.gradcheck(lses, (image, text, scale))
    fused = torch.ops.cfmvit.info_nce.default
    assert torch.autograd.gradcheck(lambda *x: fused(*x, 2, 0.7, 0.0, False)[0], (image, text, scale))
    assert torch.autograd.gradcheck(
        lambda image, text, scale: fused(image, text[:5], scale, 0, 0.3, 0.6, True)[0], (image, text, scale)
    )


def test_double_backward_says_so() -> None:
    image = features(5, 4).requires_grad_()
    (grad,) = torch.autograd.grad(
        info_nce(image, features(5, 4, seed=1), torch.tensor(3.0)), image, create_graph=True
    )
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_autocast_loses_nothing() -> None:
    image, text, scale = (
        features(64, 16, torch.float32),
        features(64, 16, torch.float32, seed=1),
        torch.tensor(14.2857),
    )
    expected = loss_and_grads(info_nce, image, text, scale)
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss_and_grads(info_nce, image, text, scale)
        mixed = info_nce(image.bfloat16(), text, scale)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert mixed.dtype == torch.float32
    assert relative(mixed, expected[0].double()) < 1e-2


def test_views() -> None:
    image, text, scale = (
        features(70, 24, torch.float32),
        features(70, 24, torch.float32, seed=1),
        torch.tensor(10.0),
    )
    expected = loss_and_grads(info_nce, image, text, scale)
    padded = torch.full((140, 40), float("nan"))
    padded[::2, 8:32] = image
    for view in (padded[::2, 8:32], image.T.contiguous().T):
        actual = loss_and_grads(info_nce, view, text.flip(0).flip(0), scale)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert torch.equal(info_nce(padded[::2, 8:32], text, scale), expected[0])


def test_frozen_inputs() -> None:
    image, text, scale = (
        features(9, 4, torch.float32),
        features(9, 4, torch.float32, seed=1),
        torch.tensor(10.0),
    )
    expected = loss_and_grads(info_nce, image, text, scale)
    for trained in range(3):
        leaves = [x.clone().requires_grad_(i == trained) for i, x in enumerate((image, text, scale))]
        (info_nce(*leaves) / 2).backward()
        assert [x.grad is not None for x in leaves] == [i == trained for i in range(3)]
        assert torch.equal(leaves[trained].grad, expected[1 + trained])


def test_bias_cancels_and_its_gradient_is_zero() -> None:
    image, text, scale = (
        features(9, 4, torch.float32),
        features(9, 4, torch.float32, seed=1),
        torch.tensor(10.0),
    )
    bias = torch.tensor(-10.0, requires_grad=True)
    loss, stats = info_nce(image, text, scale, logit_bias=bias, return_stats=True)
    loss.backward()
    assert torch.equal(bias.grad, torch.zeros(()))
    plain, plain_stats = info_nce(image, text, scale, return_stats=True)
    assert torch.equal(loss, plain)
    torch.testing.assert_close(stats.lse_text, plain_stats.lse_text - 10)
    torch.testing.assert_close(stats.positive, plain_stats.positive - 10)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_stats(impl: str) -> None:
    image, text, scale = features(600, 16), features(600, 16, seed=1), torch.tensor(10.0, dtype=torch.float64)
    text[:400] += image[:400]
    logits = scale * image @ text.T
    _, stats = info_nce(image, text, scale, return_stats=True, impl=impl)
    torch.testing.assert_close(stats.lse_image, logits.logsumexp(1))
    torch.testing.assert_close(stats.lse_text, logits.logsumexp(0))
    torch.testing.assert_close(stats.positive, logits.diagonal())
    rows = torch.arange(600)
    assert stats.accuracy_image == (logits.argmax(1) == rows).double().mean()
    assert stats.accuracy_text == (logits.argmax(0) == rows).double().mean()
    ids = rows // 3
    _, stats = info_nce(image, text, scale, return_stats=True, group_ids=ids, impl=impl)
    others = logits.masked_fill(ids[:, None] == ids, float("-inf"))
    assert stats.accuracy_image == (logits.diagonal() > others.amax(1)).double().mean()
    assert 0.2 < stats.accuracy_image < 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    args = features(1100, 40, dtype), features(1100, 40, dtype, seed=1), torch.tensor(30.0)
    threads = torch.get_num_threads()
    try:
        runs = []
        for n in (1, 2, 3, 2):
            torch.set_num_threads(n)
            runs.append(
                [*loss_and_grads(info_nce, *args, reduction="none"), *info_nce(*args, return_stats=True)[1]]
            )
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, e) for a, e in zip(run, runs[0], strict=True))


def test_no_logits_matrix_in_memory() -> None:
    """12,000 pairs have 576 MB of float32 logits; the whole step may take a quarter of that."""
    code = """if True:
        import resource, torch
        from cfmvit.ops import info_nce
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        def step(rows):
            image, text = (torch.randn(rows, 16, requires_grad=True) for _ in range(2))
            loss, _ = info_nce(image, text, torch.tensor(2.0), return_stats=True)
            loss.backward()
        step(64)
        before = peak()
        step(12_000)
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150
