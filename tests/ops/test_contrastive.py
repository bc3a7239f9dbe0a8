"""info_nce on one device: values, gradients, accuracy, memory, determinism, refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops import info_nce, siglip_loss
from cfmvit.ops.contrastive import reference

OP = torch.ops.cfmvit.contrastive_lse.default


def features(rows: int, width: int, dtype=torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=1).to(dtype)


def trained_pairs(rows: int, width: int, cosine: float) -> tuple[Tensor, Tensor]:
    """Unit features whose pairs have the given cosine, exact in bfloat16."""
    image, noise = features(rows, width, seed=1), features(rows, width, seed=2)
    noise = F.normalize(noise - (noise * image).sum(1, keepdim=True) * image, dim=1)
    text = cosine * image + (1 - cosine**2) ** 0.5 * noise
    return image.bfloat16().double(), text.bfloat16().double()


def loss_and_grads(loss_fn, image: Tensor, text: Tensor, scale: Tensor, **options) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (image, text, scale)]
    loss = loss_fn(*leaves, **options)
    weight = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)  # 0.5 for a scalar
    (loss * weight).sum().backward()
    return [loss.detach(), *(x.grad for x in leaves)]


def eager_clip(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits = scale * image @ text.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


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


def test_double_backward_says_so() -> None:
    image = features(5, 4).requires_grad_()
    (grad,) = torch.autograd.grad(
        info_nce(image, features(5, 4, seed=1), torch.tensor(3.0)), image, create_graph=True
    )
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_compile_and_export() -> None:
    def loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return info_nce(image, text, scale, group_ids=torch.arange(len(text)) // 2, label_smoothing=0.1)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (6, 9):
        args = features(rows, 8, torch.float32), features(rows, 8, torch.float32, seed=1), torch.tensor(5.0)
        for a, e in zip(loss_and_grads(compiled, *args), loss_and_grads(loss, *args), strict=True):
            torch.testing.assert_close(a, e)

    class Loss(torch.nn.Module):
        def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            return info_nce(image, text, scale)

    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Loss(), args, dynamic_shapes=({0: rows}, {0: rows}, None))
    more = features(11, 8, torch.float32), features(11, 8, torch.float32, seed=1), torch.tensor(5.0)
    torch.testing.assert_close(program.module()(*more), info_nce(*more))


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


def test_equal_features_are_not_counted_as_right() -> None:
    same = torch.ones(8, 4)
    loss, stats = info_nce(same, same, torch.tensor(1.0), return_stats=True)
    torch.testing.assert_close(loss, torch.tensor(8.0).log())
    assert stats.accuracy_image == stats.accuracy_text == 0


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


def test_sizes_known_only_at_run_time() -> None:
    scale = torch.tensor(5.0)
    image, text = features(9, 8, torch.float32), features(9, 8, torch.float32, seed=1)
    keep = torch.arange(9) % 3 > 0
    loss = lambda image, text, keep: info_nce(image[keep], text[keep], scale)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch.testing.assert_close(compiled(image, text, keep), loss(image, text, keep))


def test_export_keeps_the_batch_dynamic() -> None:
    class Loss(torch.nn.Module):
        def forward(self, image: Tensor, text: Tensor, ids: Tensor) -> Tensor:
            return info_nce(image, text, torch.tensor(5.0), group_ids=ids, label_smoothing=0.1)

    def batch(rows: int) -> tuple[Tensor, ...]:
        return (
            features(rows, 8, torch.float32),
            features(rows, 8, torch.float32, seed=1),
            torch.arange(rows) // 2,
        )

    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Loss(), batch(6), dynamic_shapes=({0: rows},) * 3)
    torch.testing.assert_close(program.module()(*batch(11)), Loss()(*batch(11)))


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
