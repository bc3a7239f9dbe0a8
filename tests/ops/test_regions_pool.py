"""pool_regions: the mean over RoIAlign's bins, its gradients, normalised tokens, odd boxes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops import pool_regions

from .families import TOLERANCES, assert_parity, assert_same_bits, moved

B, H, W = 2, 11, 14
NAN, INF = float("nan"), float("inf")


def random_tokens(channels: int, prefix: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, prefix + H * W, channels, generator=generator, dtype=torch.float64).to(dtype)


def random_boxes(count: int = 40, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """In pixels of 16 x 16 patches, tiny to larger than the image, also across its border."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(count, 2, generator=generator) * 250 - 40
    size = torch.rand(count, 2, generator=generator) ** 3 * 400 + 0.1
    return list(torch.cat([corner, corner + size], 1).to(dtype).tensor_split([count // 3]))


def pool(tokens: Tensor, boxes: Tensor | list[Tensor] | None = None, **options) -> Tensor:
    """Pool with defaults; the boxes follow the tokens to their device."""
    options = {"grid_size": (H, W), "spatial_scale": 1 / 16} | options
    boxes = moved(random_boxes() if boxes is None else boxes, str(tokens.device))
    return pool_regions(tokens, boxes, **options)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("output_size, sampling_ratio", [(7, 2), (14, 1), ((3, 5), -1), (1, -1), (1, 1)])
@pytest.mark.parametrize("aligned", [False, True])
def test_is_the_mean_over_torchvisions_bins(
    output_size, sampling_ratio: int, aligned: bool, impl: str, device: str, torchvision: ModuleType
) -> None:
    tokens, boxes = moved((random_tokens(70).requires_grad_(), random_boxes(dtype=torch.float64)), device)
    options = dict(output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned)
    actual = pool(tokens, boxes, impl=impl, **options)
    grid = tokens.transpose(1, 2).unflatten(2, (H, W))
    expected = torchvision.ops.roi_align(grid, boxes, spatial_scale=1 / 16, **options).mean((2, 3))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    upstream = torch.randn_like(expected)
    grads = [torch.autograd.grad(out, tokens, upstream)[0] for out in (actual, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("layout", ["tokens", "from_map", "expanded", "sliced"])
@pytest.mark.parametrize("channels", [1, 31, 64, 97])
def test_parity_with_float64(
    channels: int, layout: str, normalize: bool, dtype: torch.dtype, device: str
) -> None:
    prefix = 3 if layout == "sliced" else 0

    def lay_out(x: Tensor) -> Tensor:
        if layout == "from_map":  # channel planes
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "expanded":
            return x[:1].expand(B, -1, -1)
        if layout == "sliced":  # wider tokens after a NaN; prefix tokens that are NaN too
            rest = F.pad(x[:, prefix:], (1, 2, prefix + 1, 2), value=NAN)
            return rest[:, 1:-2, 1:-2]
        return x

    def make(impl: str):
        return lambda x: pool(lay_out(x), num_prefix_tokens=prefix, normalize=normalize, impl=impl)

    tokens = random_tokens(channels, prefix)
    tokens = tokens.sign() * (tokens.abs() + 0.3)  # a gradient through a short token is large
    assert_parity(make, [tokens], dtype, device)


def test_boxes_without_area_or_end_give_zeros(device: str) -> None:
    tokens = random_tokens(5).to(device).requires_grad_()
    good = [20.0, 30, 90, 70]
    odd = [[90.0, 30, 20, 70], [20, 70, 90, 30], [20, 30, 20, 70], [20, 30, 90, 30]]
    odd += [[*good[:i], value, *good[i + 1 :]] for i, value in itertools.product(range(4), (NAN, INF, -INF))]
    odd += [[0, 0, 3e38, 3e38], [1e30, 1e30, 2e30, 2e30], [-200, -200, -100, -100]]
    boxes = [torch.tensor([good, *odd]), torch.zeros(2, 4)]
    for impl, (size, ratio), aligned in itertools.product(
        ("native", "reference"), ((7, 2), (1, -1)), (True, False)
    ):
        out = pool(tokens, boxes, output_size=size, sampling_ratio=ratio, aligned=aligned, impl=impl)
        assert out[0].all()
        assert out.isfinite().all()
        assert not out[1:].any()
        (grad,) = torch.autograd.grad(out.sum(), tokens)
        assert grad.isfinite().all()
        assert not grad[1].any()


def test_normalised_tokens(device: str) -> None:
    """A zero token stays zero with a finite gradient; the gradient is orthogonal to every other token."""
    tokens = random_tokens(6).to(device)
    tokens[0, 40] = 0
    tokens.requires_grad_()
    for impl in ("native", "reference"):
        out = pool(tokens, normalize=True, impl=impl)
        torch.testing.assert_close(out, pool(F.normalize(tokens, dim=-1), impl=impl))
        assert (out.norm(dim=1) <= 1 + 1e-12).all()
        (grad,) = torch.autograd.grad(out.square().sum(), tokens)
        assert grad.isfinite().all()
        assert ((grad * tokens).sum(-1).abs() < 1e-9).all()


@pytest.mark.parametrize(
    "options", [{}, {"normalize": True}, {"output_size": 1, "sampling_ratio": -1}], ids=str
)
def test_gradcheck(options: dict, device: str) -> None:
    tokens = random_tokens(3, 1)[:, :13].clone().to(device).requires_grad_()
    boxes = random_boxes(5, torch.float64)
    options = dict(grid_size=(3, 4), num_prefix_tokens=1, spatial_scale=1 / 60) | options
    assert torch.autograd.gradcheck(lambda x: pool(x, boxes, **options), tokens)


def test_double_backward_is_refused() -> None:
    tokens = random_tokens(3).requires_grad_()
    (grad,) = torch.autograd.grad(pool(tokens).square().sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="pool_regions: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("normalize", [False, True])
def test_same_bits_for_any_number_of_threads(normalize: bool, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tokens = random_tokens(200, dtype=dtype).to(device)
        assert_same_bits(lambda x: pool(x, normalize=normalize), [tokens])


def test_one_box_has_the_bits_it_has_among_many(device: str) -> None:
    """Whether tokens are copied first (many boxes) or read where they lie (few) does not show."""
    tokens = random_tokens(70, dtype=torch.bfloat16).to(device)
    boxes = random_boxes()
    alone = torch.cat([pool(tokens, [boxes[0][i : i + 1], boxes[1][:0]]) for i in range(len(boxes[0]))])
    assert torch.equal(pool(tokens)[: len(boxes[0])], alone)


def test_nothing(device: str) -> None:
    for tokens, boxes in (
        (random_tokens(5), [torch.zeros(0, 4)] * B),
        (random_tokens(5)[:0], []),
        (random_tokens(5)[:, :, :0], [torch.ones(2, 4)] * B),
    ):
        for impl, normalize in itertools.product(("native", "reference"), (False, True)):
            leaf = tokens.detach().to(device).requires_grad_()
            out = pool(leaf, boxes, normalize=normalize, impl=impl)
            assert out.shape == (sum(map(len, boxes)), tokens.shape[2])
            out.sum().backward()
            assert leaf.grad.shape == tokens.shape
            assert not leaf.grad.any()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"tokens": torch.zeros(2, 12)}, ValueError, r"tokens must have 3 dimensions, got shape \(2, 12\)"),
        (
            {"grid_size": (3, 5)},
            ValueError,
            r"tokens must have num_prefix_tokens \+ h \* w = 15 tokens, got 12",
        ),
        ({"num_prefix_tokens": 1}, ValueError, "tokens must have .* = 13 tokens, got 12"),
        ({"num_prefix_tokens": -1}, ValueError, "num_prefix_tokens must not be negative, got -1"),
        ({"grid_size": (0, 4)}, ValueError, r"grid_size must be two positive integers, got \(0, 4\)"),
        ({"grid_size": 12}, ValueError, "grid_size must be two positive integers, got 12"),
        ({"spatial_scale": 0.0}, ValueError, "spatial_scale must be positive and finite, got 0.0"),
        (
            {"boxes": [torch.zeros(1, 4)]},
            ValueError,
            "boxes must have one tensor for each of 2 images, got 1",
        ),
        (
            {"boxes": torch.full((1, 5), 2.0)},
            ValueError,
            r"boxes must have an image number in \[0, 2\) first, got 2",
        ),
    ],
)
def test_refusals(change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "tokens": torch.zeros(2, 12, 8),
        "boxes": torch.zeros(1, 5),
        "grid_size": (3, 4),
        "spatial_scale": 1.0,
    }
    with pytest.raises(error, match="pool_regions: " + message):
        pool_regions(**(arguments | change))


INTERRUPTED = """
import os, signal, threading, torch
from cfmvit import ops

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored

boxes = torch.tensor([[0.0, 0, 0, 64, 64]]).expand(10**6, 5)
tokens, tower, texts = torch.zeros(1, 64 * 64, 64), torch.zeros(10**5, 512), torch.zeros(2000, 512)
options = dict(grid_size=(64, 64), spatial_scale=1.0)

for call in (
    lambda: ops.pool_regions(tokens, boxes, **options, output_size=65536, sampling_ratio=1),
    lambda: ops.pool_regions(tokens, boxes, **options, output_size=1, sampling_ratio=-1),
    lambda: ops.score_regions(tower, texts),
):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        call()
        print("finished")
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_a_long_call_answers_ctrl_c() -> None:
    """Each call would take seconds or minutes: samples of boxes, boxes on a map, products of embeddings."""
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=600, check=True
    )
    assert found.stdout.split() == ["interrupted"] * 3
