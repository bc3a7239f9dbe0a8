"""The reconstruction losses on a GPU: real sizes, streams under capture, memory, indices that no check has seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit import ops

from .families import TOLERANCES, strided, values_and_grads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible"),
]
B, N, D, H, P = 64, 196, 768, 512, 16
SIDE = 14 * P
DTYPES = list(TOLERANCES)
Loss = Callable[..., Tensor]


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


def masked(batch: int = B) -> Tensor:
    return ops.random_masking(
        batch, N, 0.75, generator=torch.Generator("cuda").manual_seed(5), device="cuda"
    ).masked


def losses(dtype: torch.dtype, impl: str | None = None) -> dict[str, tuple[Loss, list[Tensor]]]:
    """Return each loss as a function of what it has gradients for, and that."""
    index, target = masked(), rand(B, N, D, seed=1, dtype=dtype)
    total: dict[str, Any] = {"reduction": "sum", "impl": impl}  # a mean's gradients are too small for float16
    each: dict[str, Any] = {"reduction": "none", "impl": impl}
    images = rand(B, 3, SIDE, SIDE, seed=2, dtype=torch.promote_types(dtype, torch.float32))
    last = images.contiguous(memory_format=torch.channels_last)
    rows, across = rand(160, 196, 2048, seed=3, dtype=dtype), rand(2048, 8, seed=8, dtype=dtype)
    pred, hidden = rand(B, N, D, seed=4, dtype=dtype), rand(B, N, H, seed=5, dtype=dtype)
    weight, bias = rand(D, H, seed=6, dtype=dtype) / 16, rand(D, seed=7, dtype=dtype)
    return {
        "cosine": (lambda p: ops.masked_cosine_loss(p, target.to(p), index, **total), [pred]),
        "cosine_gaps": (
            lambda p: ops.masked_cosine_loss(p, strided(target).to(p), **each),
            [strided(pred)],
        ),
        "linear": (
            lambda h, w, b: ops.linear_masked_cosine_loss(h, w, b, target.to(h), index, **total),
            [hidden, weight, bias],
        ),
        "linear_chunks": (  # more rows than are projected at a time
            lambda h, w: ops.linear_masked_cosine_loss(h, w, None, rows.to(h), **total),
            [rows[..., :8].contiguous(), across],
        ),
        "pixels": (
            lambda p: ops.masked_pixel_loss(p, images, index, P, **total),
            [pred],
        ),
        "pixels_channels_last": (
            lambda p: ops.masked_pixel_loss(p, last, index, P, normalize=False, **each),
            [pred[:, : index.shape[1]]],
        ),
    }


NAMES = ("cosine", "cosine_gaps", "linear", "linear_chunks", "pixels", "pixels_channels_last")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_parity_at_real_sizes(name: str, dtype: torch.dtype) -> None:
    """Each output is compared relative to its largest entry."""
    native, inputs = losses(dtype)[name]
    reference = losses(dtype, "reference")[name][0]
    found, exact = values_and_grads(native, inputs), values_and_grads(reference, [x.double() for x in inputs])
    assert all(x.isfinite().all() for x in found)
    for ours, truth in zip(found, exact, strict=True):
        scale = truth.abs().max()
        torch.testing.assert_close(ours.double() / scale, truth / scale, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_run_gives_equal_bits(name: str, dtype: torch.dtype) -> None:
    native, inputs = losses(dtype)[name]
    first, *others = (values_and_grads(native, inputs) for _ in range(3))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def loss_and_grads(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    out = loss(*inputs)
    return [out.detach(), *torch.autograd.grad(out.sum(), inputs)]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Waiting for the device is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch warn that the mode is a prototype
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_nobody_waits_for_the_device(name: str) -> None:
    native, inputs = losses(torch.bfloat16)[name]
    with no_waiting():
        loss_and_grads(native, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_replays_as_a_graph_with_other_numbers(name: str, dtype: torch.dtype) -> None:
    native, inputs = losses(dtype)[name]
    inputs = [x.requires_grad_() for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # matrix products and autograd warm up outside the capture
        loss_and_grads(native, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_grads(native, inputs)
    with torch.no_grad():
        for x in inputs:
            x.mul_(-0.5)
    graph.replay()
    for a, b in zip(captured, loss_and_grads(native, inputs), strict=True):
        assert torch.equal(a, b)


def peak(call: Callable[[], Any]) -> int:
    """Return the most bytes that a call has beyond what there was before it."""
    call()  # libraries' workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def test_the_feature_loss_takes_the_memory_of_its_gradient() -> None:
    batch, index = 1024, masked(1024)
    pred, target = (rand(batch, N, D, seed=s, dtype=torch.bfloat16) for s in (1, 2))
    pred.requires_grad_()
    taken = peak(lambda: torch.autograd.grad(ops.masked_cosine_loss(pred, target, index), pred))
    assert taken <= 1.01 * pred.numel() * pred.element_size()


def test_the_projection_is_never_held_whole() -> None:
    """Beyond the gradients, the fused loss takes less than a tenth of what the chain that it replaces takes."""
    batch, tokens = 1024, 147
    hidden = rand(batch, tokens, H, seed=1, dtype=torch.bfloat16).requires_grad_()
    weight = rand(D, H, seed=2, dtype=torch.bfloat16).requires_grad_()
    target = rand(batch, tokens, D, seed=3, dtype=torch.bfloat16)
    leaves = [hidden, weight]

    def unfused() -> Tensor:
        pred = F.linear(hidden, weight).float()
        return (1 - F.cosine_similarity(pred, target.float(), dim=-1)).mean()

    def fused() -> Tensor:
        return ops.linear_masked_cosine_loss(hidden, weight, None, target)

    chain, ours = (peak(lambda loss=loss: torch.autograd.grad(loss(), leaves)) for loss in (unfused, fused))
    gradients = sum(x.numel() * x.element_size() for x in leaves)
    assert ours - gradients <= (chain - gradients) / 10


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_indices_that_no_check_has_seen(dtype: torch.dtype) -> None:
    """Out of range reads zeros and gives no gradient, repeated entries add up, and other rows are as if alone."""
    far = 1 << (30 if dtype == torch.int32 else 40)
    index = torch.tensor([[0, -1, 2, 2], [far, 3, 1, N], [-far, 5, 5, 5]], dtype=dtype, device="cuda")
    sound = (index >= 0) & (index < N)
    rows = index.long().where(sound, 0)
    pred, target, hidden = (rand(3, N, width, seed=s) for s, width in ((1, D), (2, D), (3, 40)))
    weight, bias = rand(D, 40, seed=4), rand(D, seed=5)
    images = rand(3, 3, SIDE, SIDE, seed=6)
    options: dict[str, Any] = {"reduction": "none"}

    def sane(values: Tensor) -> Tensor:
        return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2])) * sound[..., None]

    leaves = [x.requires_grad_() for x in (pred, hidden, weight)]
    cosine = ops.masked_cosine_loss(pred, target, index, **options)
    linear = ops.linear_masked_cosine_loss(hidden, weight, bias, target, index, **options)
    pixels = ops.masked_pixel_loss(pred, images, index, P, **options)
    expected = [
        ops.masked_cosine_loss(sane(pred), sane(target), **options, impl="reference"),
        ops.linear_masked_cosine_loss(sane(hidden), weight, bias, sane(target), **options, impl="reference"),
        ops.masked_pixel_loss(pred, images, rows, P, **options, impl="reference") * sound,
    ]
    assert (cosine[~sound] == 1).all()
    for ours, truth in zip((cosine, linear, pixels), expected):
        torch.testing.assert_close(ours, truth, atol=1e-3, rtol=1e-3)
        ours, truth = (torch.autograd.grad(x.sum(), leaves, allow_unused=True) for x in (ours, truth))
        for a, b in zip(ours, truth):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_offsets_beyond_32_bits() -> None:
    places, width = (1 << 21) + 8, 1024
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of GPU memory")
    pred = torch.ones(1, places, width, dtype=torch.bfloat16, device="cuda")
    row = rand(1, 1, width, seed=1, dtype=torch.bfloat16)
    pred[:, -8:] = rand(1, 8, width, seed=2)
    target = row.expand(-1, places, -1)
    index = torch.arange(places - 8, places, device="cuda")[None]
    pred.requires_grad_()
    found = ops.masked_cosine_loss(pred, target, index, reduction="none")
    (grad,) = torch.autograd.grad(found.sum(), pred)
    last = pred[:, -8:].detach().requires_grad_()
    exact = ops.masked_cosine_loss(last, target[:, -8:], reduction="none", impl="reference")
    torch.testing.assert_close(found, exact)
    (expected,) = torch.autograd.grad(exact.sum(), last)
    torch.testing.assert_close(grad[:, -8:], expected)
    assert not grad[:, :-8].any()
