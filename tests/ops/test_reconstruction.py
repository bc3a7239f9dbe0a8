"""The reconstruction family: parity with plain PyTorch in float64, zero vectors, reductions, refusals, determinism."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit import ops

from .families import (
    TOLERANCES,
    assert_gradcheck,
    assert_parity,
    assert_same_bits,
    cast,
    moved,
    strided,
    values_and_grads,
)

DTYPES = list(TOLERANCES)
B, N, D, H = 3, 12, 37, 10
INDEX = ops.random_masking(B, N, 0.6, generator=torch.Generator().manual_seed(5)).masked


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TARGET, IMAGES = rand(B, N, D, seed=9), rand(B, 3, 12, 16, seed=8)

OPS: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "cosine": (
        lambda impl: lambda p: ops.masked_cosine_loss(p, TARGET.to(p), reduction="none", impl=impl),
        (rand(B, N, D),),
    ),
    "cosine_index": (
        lambda impl: lambda p: ops.masked_cosine_loss(p, TARGET.to(p), INDEX.to(p.device), impl=impl),
        (rand(B, N, D),),
    ),
    "linear": (
        lambda impl: (
            lambda h, w, b: ops.linear_masked_cosine_loss(
                h, w, b, TARGET.to(h), INDEX.to(h.device), impl=impl
            )
        ),
        (rand(B, N, H), rand(D, H, seed=1), rand(D, seed=2)),
    ),
    "linear_bare": (
        lambda impl: (
            lambda h, w: ops.linear_masked_cosine_loss(h, w, None, TARGET.to(h), reduction="sum", impl=impl)
        ),
        (rand(B, N, H), rand(D, H, seed=1)),
    ),
    "linear_each": (
        lambda impl: (
            lambda h, w, b: ops.linear_masked_cosine_loss(
                h, w, b, TARGET.to(h), INDEX.to(h.device), reduction="none", impl=impl
            )
        ),
        (rand(B, N, H), rand(D, H, seed=1), rand(D, seed=2)),
    ),
    "pixel_all": (
        lambda impl: (
            lambda p: ops.masked_pixel_loss(p, IMAGES.to(p.device), INDEX.to(p.device), 4, impl=impl)
        ),
        (rand(B, 12, 48),),
    ),
    "pixel_masked": (
        lambda impl: (
            lambda p: ops.masked_pixel_loss(
                p, IMAGES.to(p.device), INDEX.to(p.device), 4, normalize=False, reduction="none", impl=impl
            )
        ),
        (rand(B, INDEX.shape[1], 48),),
    ),
}
CASES = pytest.mark.parametrize("case", OPS)


@CASES
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity(case: str, dtype: torch.dtype, device: str) -> None:
    make, inputs = OPS[case]
    assert_parity(make, inputs, dtype, device)


@CASES
def test_gradcheck(case: str, device: str) -> None:
    make, inputs = OPS[case]
    assert_gradcheck(make("native"), inputs, device)


@CASES
def test_same_bits_for_any_number_of_threads(case: str, device: str) -> None:
    make, inputs = OPS[case]
    assert_same_bits(make("native"), cast(inputs, torch.float32, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_losses_have_the_same_bits_for_any_number_of_threads(dtype: torch.dtype, device: str) -> None:
    """More losses than torch sums on one thread, several chunks of the projection, more than one block of its width."""
    kind = {"dtype": dtype, "device": device}
    pred, target = torch.randn(300, 130, 4, **kind), torch.randn(300, 130, 4, **kind)
    assert_same_bits(lambda p: ops.masked_cosine_loss(p, target), [pred])
    hidden, weight = torch.randn(2, 700, 12, **kind), torch.randn(1601, 12, **kind)
    target = torch.randn(2, 700, 1601, **kind)
    assert_same_bits(lambda h, w: ops.linear_masked_cosine_loss(h, w, None, target), [hidden, weight])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_many_chunks_of_the_projection_agree_with_one(dtype: torch.dtype, device: str) -> None:
    inputs = [rand(1, 1500, 6), rand(1100, 6, seed=1), rand(1100, seed=2)]
    target = rand(1, 1500, 1100, seed=3).to(device, dtype)
    inputs = [x.to(device, dtype) for x in inputs]
    ours, expected = (
        values_and_grads(
            lambda h, w, b, impl=impl: ops.linear_masked_cosine_loss(
                h, w, b, target.to(h), reduction="sum", impl=impl
            ),
            leaves,
        )
        for impl, leaves in (("native", inputs), ("reference", [x.double() for x in inputs]))
    )
    for a, b in zip(ours, expected, strict=True):
        scale = b.abs().max()
        torch.testing.assert_close(a.double() / scale, b / scale, **TOLERANCES[dtype])


@pytest.mark.parametrize("pred_dtype", DTYPES)
@pytest.mark.parametrize("target_dtype", DTYPES)
def test_pred_and_target_of_different_dtypes(
    pred_dtype: torch.dtype, target_dtype: torch.dtype, device: str
) -> None:
    pred, target = rand(B, N, D).to(device, pred_dtype), TARGET.to(device, target_dtype)
    weight, index = rand(D, D, seed=4).to(device, pred_dtype), INDEX.to(device)
    low = pred_dtype if torch.finfo(pred_dtype).eps > torch.finfo(target_dtype).eps else target_dtype
    for make in (
        lambda p, t, w, impl: ops.masked_cosine_loss(p, t, index, impl=impl),
        lambda p, t, w, impl: ops.linear_masked_cosine_loss(p, w, None, t, impl=impl),
    ):
        found = make(pred, target, weight, "native")
        exact = make(pred.double(), target.double(), weight.double(), "reference")
        assert found.dtype == torch.promote_types(pred_dtype, torch.float32)
        torch.testing.assert_close(found.double(), exact, **TOLERANCES[low])


def test_cosine_is_one_minus_torchs() -> None:
    pred = rand(B, N, D)
    rows = torch.arange(B)[:, None]
    expected = (1 - F.cosine_similarity(pred[rows, INDEX], TARGET[rows, INDEX], dim=-1)).mean()
    torch.testing.assert_close(ops.masked_cosine_loss(pred, TARGET, INDEX), expected)


def test_pixel_loss_is_maes() -> None:
    """MAE's forward_loss written out, from its own patchify."""
    pred = rand(B, 12, 48)
    patches = torch.einsum("nchpwq->nhwpqc", IMAGES.reshape(B, 3, 3, 4, 4, 4)).reshape(B, 12, 48)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6) ** 0.5
    mask = torch.zeros(B, 12, dtype=torch.float64).scatter_(1, INDEX, 1.0)
    expected = (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()
    for impl in ("native", "reference"):
        torch.testing.assert_close(ops.masked_pixel_loss(pred, IMAGES, INDEX, 4, impl=impl), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixel_loss_of_any_channels_and_layout(
    channels: int, layout: torch.memory_format, device: str
) -> None:
    images = rand(B, channels, 12, 16).to(device).contiguous(memory_format=layout)
    pred, index = rand(B, 12, 16 * channels).to(device), INDEX.to(device)
    found, expected = (
        ops.masked_pixel_loss(pred, images, index, 4, reduction="none", impl=impl)
        for impl in ("native", "reference")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_zero_vectors_have_loss_one_and_no_gradient(impl: str, device: str) -> None:
    pred, target = rand(1, 3, 8).to(device), rand(1, 3, 8, seed=1).to(device)
    pred[0, 0], target[0, 1] = 0, 0
    pred.requires_grad_()
    losses = ops.masked_cosine_loss(pred, target, reduction="none", impl=impl)
    losses.sum().backward()
    assert losses[0, :2].tolist() == [1.0, 1.0]
    assert not pred.grad[0, :2].any()
    assert pred.grad[0, 2].abs().sum() > 0


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_the_target_gets_no_gradient_and_unmasked_tokens_get_zero(impl: str, device: str) -> None:
    pred, target = (x.clone().to(device).requires_grad_() for x in (rand(B, N, D), TARGET))
    ops.masked_cosine_loss(pred, target, INDEX.to(device), impl=impl).backward()
    assert target.grad is None
    masked = torch.zeros(B, N, dtype=torch.bool).scatter_(1, INDEX, True).to(device)
    assert (pred.grad[~masked] == 0).all()
    assert (pred.grad[masked].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_reductions_and_weights(impl: str, device: str) -> None:
    pred, target = rand(B, N, D).to(device), TARGET.to(device)
    losses = ops.masked_cosine_loss(pred, target, reduction="none", impl=impl)
    weight = torch.rand(B, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    torch.testing.assert_close(ops.masked_cosine_loss(pred, target, reduction="sum", impl=impl), losses.sum())
    torch.testing.assert_close(ops.masked_cosine_loss(pred, target, impl=impl), losses.mean())
    weighted = ops.masked_cosine_loss(pred, target, weight=weight, impl=impl)
    torch.testing.assert_close(weighted, (losses * weight).sum() / weight.sum())
    assert ops.masked_cosine_loss(pred, target, weight=torch.zeros_like(weight), impl=impl) == 0


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_nothing_masked_is_zero(impl: str, device: str) -> None:
    none = torch.zeros(B, 0, dtype=torch.int64, device=device)
    pred, target, images = (x.to(device) for x in (rand(B, N, D), TARGET, IMAGES))
    pred.requires_grad_()
    loss = ops.masked_cosine_loss(pred, target, none, impl=impl)
    loss.backward()
    assert loss == 0
    assert (pred.grad == 0).all()
    assert ops.masked_pixel_loss(rand(B, 12, 48).to(device), images, none, 4, impl=impl) == 0
    hidden, weight, target = (x.to(device) for x in (rand(0, 4, H), rand(D, H), rand(0, 4, D)))
    assert ops.linear_masked_cosine_loss(hidden, weight, None, target, impl=impl) == 0


@pytest.mark.parametrize("size", [(8, 0), (0, 8), (0, 0)])
def test_images_without_a_pixel_have_no_loss(size: tuple[int, int], device: str) -> None:
    images, none = (
        torch.zeros(2, 3, *size, device=device),
        torch.zeros(2, 0, dtype=torch.int64, device=device),
    )
    pred = torch.zeros(2, 0, 48, device=device, requires_grad=True)
    loss = ops.masked_pixel_loss(pred, images, none, 4)
    loss.backward()
    assert loss == 0 and pred.grad.shape == pred.shape
    assert ops.gather_patches(images, none, 4).shape == (2, 0, 48)


def test_strided_rows_are_read_where_they_lie(device: str) -> None:
    make, (pred,) = OPS["cosine_index"]
    assert_parity(make, (strided(pred),), torch.float64, device)
    pred, target, gapped = cast((pred, TARGET, strided(TARGET)), torch.float64, device)
    expected = ops.masked_cosine_loss(pred, target, impl="native")
    assert torch.equal(ops.masked_cosine_loss(pred, gapped, impl="native"), expected)


def test_the_projection_is_never_held_whole() -> None:
    """4,096 rows of 4,096 channels would be 64 MB of pred; a chunk is 4 MB."""
    hidden, weight, target = torch.randn(1, 4096, 8), torch.randn(4096, 8), torch.randn(1, 4096, 4096)
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.linear_masked_cosine_loss(hidden, weight, None, target, impl="native")
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 4 * 2**20


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(device: str) -> None:
    make, inputs = OPS["linear"]
    leaves = [x.to(device, torch.float32).requires_grad_() for x in inputs]
    with torch.autocast(device, torch.bfloat16):
        loss = ops.linear_masked_cosine_loss(*leaves, TARGET.float().to(device), INDEX.to(device))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(x.grad.dtype == torch.float32 for x in leaves)
    exact = make("reference")(*inputs)
    assert 0 < (loss.cpu() - exact).abs() < 2e-2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.masked_cosine_loss(torch.zeros(2, 3), torch.zeros(2, 3)), ValueError, r"pred must have shape \(B, M, D\), got \(2, 3\)"),
        (lambda: ops.masked_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)), ValueError, r"target must have shape \(2, 3, 4\), got \(2, 3, 5\)"),
        (lambda: ops.masked_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), reduction="avg"), ValueError, "reduction must be mean, sum or none, got 'avg'"),
        (lambda: ops.masked_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.tensor([[3], [0]])), ValueError, r"index must lie in 0\.\.2, got 3"),
        (lambda: ops.masked_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.tensor([[1, 1], [0, 1]])), ValueError, "index must not repeat an entry, got 1 twice in row 0"),
        (lambda: ops.masked_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), weight=torch.ones(2, 2)), ValueError, r"weight must have shape \(2, 3\), got \(2, 2\)"),
        (lambda: ops.masked_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), eps=0.0), ValueError, r"eps must be above 0, got 0\.0"),
        (lambda: ops.linear_masked_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(5, 6), None, torch.zeros(2, 3, 5)), ValueError, r"weight must have shape \(D, 4\), got \(5, 6\)"),
        (lambda: ops.linear_masked_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(5, 4), torch.zeros(4), torch.zeros(2, 3, 5)), ValueError, r"bias must have shape \(5,\), got \(4,\)"),
        (lambda: ops.masked_pixel_loss(torch.zeros(1, 4, 47), torch.zeros(1, 3, 8, 8), torch.tensor([[0]]), 4), ValueError, r"pred must have shape \(1, 4, 48\) or \(1, 1, 48\), got \(1, 4, 47\)"),
        (lambda: ops.masked_pixel_loss(torch.zeros(1, 4, 48), torch.zeros(1, 3, 8, 8), torch.tensor([[0]]), 5), ValueError, "patch_size must divide"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_nan_shows_in_the_loss(device: str) -> None:
    pred = rand(B, N, D).to(device)
    pred[1, 2, 3] = torch.nan
    losses = ops.masked_cosine_loss(pred, TARGET.to(device), reduction="none", impl="native")
    assert losses[1, 2].isnan()
    assert losses.isnan().sum() == 1


@CASES
def test_compiles_in_one_graph(case: str, device: str) -> None:
    make, inputs = OPS[case]
    inputs = cast(inputs, torch.float32, device)
    compiled = torch.compile(make(None), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), make(None)(*inputs))


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=str
)
def test_frozen_inputs_of_the_projection(wanted: tuple[bool, ...], device: str) -> None:
    inputs = [
        x.to(device).requires_grad_(wants)
        for x, wants in zip((rand(B, N, H), rand(D, H, seed=1), rand(D, seed=2)), wanted, strict=True)
    ]
    target = TARGET.to(device)
    leaves = [x for x in inputs if x.requires_grad]
    ours, expected = (
        torch.autograd.grad(ops.linear_masked_cosine_loss(*inputs, target, impl=impl), leaves)
        for impl in ("native", "reference")
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("trained", range(3), ids=["hidden", "weight", "bias"])
def test_second_derivatives_of_the_sum_are_refused(trained: int) -> None:
    inputs = [rand(1, 4, 5), rand(6, 5, seed=1), rand(6, seed=2)]
    x = inputs[trained].requires_grad_()
    loss = ops.linear_masked_cosine_loss(*inputs, rand(1, 4, 6, seed=3))
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.autograd.grad(grad.pow(2).sum(), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_scale_of_the_loss_does_not_round_gradients(dtype: torch.dtype, device: str) -> None:
    """Not by a common factor in bfloat16 (1 / 7 is none of its numbers), nor out of float16's range by a loss scale."""
    hidden, weight, target = rand(1, 7, 64), rand(64, 64, seed=1), rand(1, 7, 64, seed=2)
    scale = 65536.0 if dtype == torch.float16 else 1.0
    grads = []
    for impl, kind in (("native", dtype), ("reference", torch.float64)):
        leaf = hidden.to(device, dtype).to(kind).requires_grad_()
        others = (x.to(device, dtype).to(kind) for x in (weight, target))
        projection, wanted = others
        loss = ops.linear_masked_cosine_loss(leaf, projection, None, wanted, impl=impl)
        grads.append(torch.autograd.grad(scale * loss, leaf)[0].double())
    factor = (grads[0] * grads[1]).sum() / (grads[1] ** 2).sum()
    assert abs(factor - 1) < 1e-3


def leaf(*shape: int) -> Tensor:
    return rand(*shape).float().requires_grad_()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("masked_cosine_loss", (leaf(B, N, 4), rand(B, N, 4).float(), INDEX, 1e-8)),
        ("linear_masked_cosine_loss", (leaf(6, 4), leaf(5, 4), leaf(5), rand(6, 5, seed=3).float(), 1e-8)),
        (
            "linear_masked_cosine_sum",
            (leaf(6, 4), leaf(5, 4), leaf(5), rand(6, 5, seed=3).float(), 1e-8, True, True),
        ),
        (
            "linear_masked_cosine_sum",
            (leaf(6, 4), leaf(5, 4).detach(), None, rand(6, 5, seed=3).float(), 1e-8, True, False),
        ),
        ("masked_pixel_loss", (leaf(B, 12, 48), IMAGES.float(), INDEX, 4, True)),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck(name: str, arguments: tuple[Any, ...], device: str) -> None:
    torch.library.opcheck(getattr(torch.ops.cfmvit, name).default, moved(arguments, device))
