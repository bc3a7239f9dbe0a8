"""The masking family: MAE's indices, parity with float64, gradients, strides, refusals, determinism, tracing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from cfmvit import ops

from .families import TOLERANCES, assert_gradcheck, assert_parity, assert_same_bits, cast, moved, strided

DTYPES = list(TOLERANCES)
B, N, D = 3, 13, 37


def mae_random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """MAE's own formulation: keep and restore indices."""
    shuffle = torch.argsort(noise, dim=1, stable=True)
    restore = torch.argsort(shuffle, dim=1, stable=True)
    return shuffle[:, : int(noise.shape[1] * (1 - mask_ratio))], restore


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masking(ratio: float = 0.6, batch: int = B, tokens: int = N) -> ops.Masking:
    return ops.random_masking(batch, tokens, ratio, generator=torch.Generator().manual_seed(5))


MASKING, PATCHES = masking(), masking(tokens=12).keep
COINS = torch.tensor([True, False, True])


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 31, 33, 196, 1000])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 1.0])
def test_random_masking_gives_maes_indices(
    ratio: float, tokens: int, dtype: torch.dtype, impl: str, device: str
) -> None:
    """Coarse noise has many ties, both signs and both zeros."""
    noise = (rand(4, tokens) * 4).round().to(dtype) / 4
    noise[0, ::2] = -0.0
    found = ops.random_masking(4, tokens, ratio, noise=noise.to(device), impl=impl)
    found = ops.Masking(*(x.cpu() for x in found))
    keep, restore = mae_random_masking(noise, ratio)
    assert torch.equal(found.keep, keep)
    assert torch.equal(found.restore, restore)
    assert torch.equal(
        torch.cat([found.keep, found.masked], 1).gather(1, found.restore), torch.arange(tokens).expand(4, -1)
    )


def test_random_masking_orders_infinities_and_strided_noise() -> None:
    noise = rand(2, 20)[:, ::2].float()
    noise[0, 3], noise[0, 4] = float("inf"), float("-inf")
    a, b = (ops.random_masking(2, 10, 0.5, noise=noise, impl=impl) for impl in ("native", "reference"))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert a.keep[0, 0] == 4
    assert a.masked[0, -1] == 3


@pytest.mark.parametrize("power", [1, 9, 99], ids=["uniform", "skewed", "nearly all in one place"])
@pytest.mark.parametrize("tokens", [2, 196, 3001])
def test_random_masking_orders_noise_of_any_distribution(tokens: int, power: int) -> None:
    noise = torch.rand(5, tokens, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** power
    for dtype in (torch.float32, torch.float64):
        a, b = (
            ops.random_masking(5, tokens, 0.5, noise=noise.to(dtype), impl=i) for i in ("native", "reference")
        )
        assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_random_masking_is_reproducible_from_a_generator() -> None:
    assert all(torch.equal(a, b) for a, b in zip(masking(), masking()))
    assert not torch.equal(masking().keep[0], masking().keep[1])


# Every tensor of a call is an input, so that a case runs on any device.
OPS: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "gather": (
        lambda impl: lambda x, i, p, c: ops.gather_tokens(x, i, pos_embed=p, keep_pos=c, impl=impl),
        (rand(B, N, D), MASKING.masked, rand(N, D, seed=1), COINS),
    ),
    "gather_bare_int32": (
        lambda impl: lambda x, i: ops.gather_tokens(x, i, impl=impl),
        (rand(B, N, D), MASKING.keep.int()),
    ),
    "gather_repeated": (
        lambda impl: lambda x, i, p: ops.gather_tokens(x, i, pos_embed=p, impl=impl),
        (rand(B, N, D), torch.tensor([[0, 2, 0]] * B), rand(N, D, seed=1)),
    ),
    "split": (
        lambda impl: (
            lambda x, k, m, r, p, c: ops.split_tokens(
                x, ops.Masking(k, m, r), pos_embed=p, keep_pos=c, impl=impl
            )
        ),
        (rand(B, N, D), *MASKING, rand(N, D, seed=1), COINS),
    ),
    "restore": (
        lambda impl: lambda v, m, r, p: ops.restore_tokens(v, m, r, pos_embed=p, impl=impl),
        (rand(B, 5, D), rand(D, seed=1), MASKING.restore, rand(N, D, seed=2)),
    ),
    "restore_bare": (
        lambda impl: lambda v, m, r: ops.restore_tokens(v, m, r, impl=impl),
        (rand(B, 5, D), rand(D, seed=1), MASKING.restore),
    ),
    "patches": (
        lambda impl: (
            lambda x, i: ops.gather_patches(x, i, 5, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 0.5], impl=impl)
        ),
        (rand(B, 3, 15, 20), PATCHES),
    ),
    "patches_all": (lambda impl: lambda x: ops.gather_patches(x, None, 5, impl=impl), (rand(B, 3, 15, 20),)),
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
    small = [x[..., :4] if x.is_floating_point() and x.shape[-1] == D else x for x in inputs]
    assert_gradcheck(make("native"), small, device)


@CASES
def test_same_bits_for_any_number_of_threads(case: str, device: str) -> None:
    make, inputs = OPS[case]
    assert_same_bits(make("native"), cast(inputs, torch.float32, device))


@pytest.mark.parametrize("case", ["gather", "split", "restore"])
def test_strided_tokens_are_read_where_they_lie(case: str, device: str) -> None:
    make, (tokens, *rest) = OPS[case]
    for view in (strided(tokens), tokens.transpose(1, 2).contiguous().transpose(1, 2)):
        assert_parity(make, (view, *rest), torch.float64, device)


def test_patches_of_bytes_and_of_strided_images(device: str) -> None:
    pixels = torch.randint(
        0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels = pixels.to(device)
    expected = torch.nn.functional.unfold(pixels.double() / 255, 4, stride=4).transpose(1, 2)
    for dtype in DTYPES:
        found = ops.gather_patches(pixels, None, 4, dtype=dtype, impl="native")
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, **TOLERANCES[dtype])
    channels_last = pixels.to(memory_format=torch.channels_last)
    assert torch.equal(
        ops.gather_patches(channels_last, None, 4, impl="native"),
        ops.gather_patches(pixels, None, 4, impl="native"),
    )


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_empty_batches_and_masks(impl: str, device: str) -> None:
    none = ops.random_masking(0, 4, 0.5, device=device, impl=impl)
    assert ops.gather_tokens(torch.zeros(0, 4, 2, device=device), none.keep, impl=impl).shape == (0, 2, 2)
    all_masked = ops.random_masking(2, 4, 1.0, device=device, impl=impl)
    tokens = torch.ones(2, 4, 3, device=device, requires_grad=True)
    visible, masked = ops.split_tokens(tokens, all_masked, impl=impl)
    assert visible.shape == (2, 0, 3)
    assert masked.shape == (2, 4, 3)
    token = torch.ones(3, device=device, requires_grad=True)
    ops.restore_tokens(visible, token, all_masked.restore, impl=impl).sum().backward()
    assert token.grad.tolist() == [8.0] * 3
    assert ops.gather_patches(torch.zeros(0, 3, 4, 4, device=device), None, 4, impl=impl).shape == (0, 1, 48)


def test_offsets_beyond_two_to_the_31() -> None:
    """One sample repeated by a zero stride, and a token stride of 2**29 over untouched memory: offsets pass 2**31."""
    far = torch.empty_strided((1, 5, 2), (0, 2**29, 1), dtype=torch.float16)
    far[0, 4] = 3
    assert ops.gather_tokens(far, torch.tensor([[4]]), impl="native").tolist() == [[[3.0, 3.0]]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.random_masking(2, 4, 1.5), ValueError, r"mask_ratio must lie in 0\.\.1, got 1\.5"),
        (lambda: ops.random_masking(2, 4, 0.5, noise=torch.full((2, 4), torch.nan)), ValueError, "noise must not hold NaN, got 8"),
        (lambda: ops.random_masking(2, 4, 0.5, noise=torch.zeros(2, 5)), ValueError, r"noise must have shape \(2, 4\), got \(2, 5\)"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3), torch.tensor([[0], [4]])), ValueError, r"index must lie in 0\.\.3, got 4"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3), torch.tensor([[0], [-1]])), ValueError, r"index must lie in 0\.\.3, got -1"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3), torch.zeros(2, 1)), TypeError, "index must be int32 or int64, got torch.float32"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4), torch.tensor([[0]])), ValueError, r"tokens must have shape \(B, N, D\), got \(2, 4\)"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3, dtype=torch.int32), torch.tensor([[0], [0]])), TypeError, "tokens must be floating point"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3), torch.tensor([[0], [1]]), pos_embed=torch.zeros(5, 3)), ValueError, r"pos_embed must have shape \(4, 3\), got \(5, 3\)"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3), torch.tensor([[0], [1]]), keep_pos=torch.ones(2)), TypeError, "keep_pos must be bool, got torch.float32"),
        (lambda: ops.gather_tokens([1], torch.tensor([[0]])), TypeError, "tokens must be a tensor, got list"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3), torch.tensor([[0], [1]]), impl="cuda"), ValueError, "impl must be None, 'native' or 'reference'"),
        (lambda: ops.split_tokens(torch.zeros(2, 4, 3), masking(batch=2, tokens=3)), ValueError, "masking must hold each of 4 tokens once"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3), torch.zeros(2, 1).long(), pos_embed=torch.ones(4, 3).long()), TypeError, "pos_embed must be floating point, got torch.int64"),
        (lambda: ops.gather_tokens(torch.zeros(2, 4, 3), torch.zeros(2, 1).long(), pos_embed=torch.ones(4, 3).numpy()), TypeError, "pos_embed must be a tensor, got ndarray"),
        (lambda: ops.restore_tokens(torch.zeros(2, 1, 3), torch.ones(3).bool(), torch.zeros(2, 1).long()), TypeError, "mask_token must be floating point, got torch.bool"),
        (lambda: ops.restore_tokens(torch.zeros(2, 4, 3), torch.zeros(2), torch.zeros(2, 4, dtype=torch.int64)), ValueError, r"mask_token must have shape \(3,\)"),
        (lambda: ops.restore_tokens(torch.zeros(1, 1, 3), torch.zeros(3), torch.tensor([[0, 0]])), ValueError, "restore must not repeat an entry, got 0 twice in row 0"),
        (lambda: ops.gather_patches(torch.zeros(1, 3, 8, 9), None, 4), ValueError, "patch_size must divide the images' sides 8 x 9, got 4"),
        (lambda: ops.gather_patches(torch.zeros(1, 3, 8, 8), None, 4, mean=[1.0]), ValueError, "mean must have 3 entries"),
        (lambda: ops.gather_patches(torch.zeros(1, 3, 8, 8, dtype=torch.int32), None, 4), TypeError, "images must be uint8 or floating point"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def _message(call: Any) -> str:
    """The sentence of the error, without what torch and the stack put around it."""
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        call()
    return re.search(r"\w+: .* must [^\n]*", str(caught.value)).group()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gather_tokens", (torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.int64), None, None)),
        ("gather_tokens", (torch.zeros(2, 4, 3), torch.zeros(3, 1, dtype=torch.int64), None, None)),
        ("gather_tokens", (torch.zeros(2, 4, 3), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(4, 2), None)),
        ("gather_tokens", (torch.zeros(2, 4, 3), torch.zeros(2, 1, dtype=torch.int64), None, torch.ones(3, dtype=torch.bool))),
        ("restore_tokens", (torch.zeros(2, 4, 3), torch.zeros(2), torch.zeros(2, 4, dtype=torch.int64), None)),
        ("restore_tokens", (torch.zeros(2, 4, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64) + torch.arange(3), None)),
        ("gather_patches", (torch.zeros(1, 3, 8, 9), None, 4, None, None, torch.float32)),
    ],
)  # fmt: skip
def test_kernels_and_fakes_say_the_same(name: str, arguments: tuple[Any, ...]) -> None:
    op = getattr(torch.ops.cfmvit, name)
    with FakeTensorMode() as mode:
        faked = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments]
        said_by_fake = _message(lambda: op(*faked))
    assert _message(lambda: op(*arguments)) == said_by_fake


def test_kernels_read_nothing_out_of_bounds() -> None:
    """Called past the Python functions, the ops look at the values themselves."""
    index, message = torch.tensor([[9]]), r"must lie in 0\.\.3, got 9"
    tokens, grad = torch.zeros(1, 4, 3), torch.zeros(1, 1, 3)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.cfmvit.gather_tokens(tokens, index, None, None)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.cfmvit.gather_tokens_backward(grad, index, None, 4, True, False)
    with pytest.raises(RuntimeError, match=r"masking\.masked must lie in 0\.\.3, got 9"):
        torch.ops.cfmvit.split_tokens(tokens, torch.tensor([[0, 1, 2]]), index, None, None)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("width", [0, 1, 35])
@pytest.mark.parametrize(("batch", "count"), [(0, 5), (2, 0), (1, 1), (3, 2), (3, 40)])
def test_restoring_undoes_splitting(batch: int, count: int, ratio: float, width: int) -> None:
    tokens, masked_token = rand(batch, count, width), rand(width, seed=1)
    drawn = ops.random_masking(batch, count, ratio, generator=torch.Generator().manual_seed(2))
    visible, masked = ops.split_tokens(tokens, drawn, impl="native")
    both = torch.cat([visible, masked], 1)
    whole = ops.restore_tokens(both, masked_token, drawn.restore, impl="native")
    assert torch.equal(whole, tokens)
    part = ops.restore_tokens(visible, masked_token, drawn.restore, impl="native")
    is_masked = torch.zeros(batch, count, dtype=torch.bool).scatter_(1, drawn.masked, True)
    assert torch.equal(part, torch.where(is_masked[..., None], masked_token, tokens))


@CASES
def test_compiles_in_one_graph(case: str, device: str) -> None:
    make, inputs = OPS[case]
    inputs = cast(inputs, torch.float32, device)
    compiled = torch.compile(make(None), backend="aot_eager", fullgraph=True)
    expected = make(None)(*inputs)
    torch.testing.assert_close(compiled(*inputs), expected)


def test_compiles_by_inductor_and_exports() -> None:
    class Split(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = torch.nn.Parameter(rand(N, 4).float())

        def forward(self, tokens: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            drawn = ops.random_masking(tokens.shape[0], N, 0.6, noise=noise)
            return ops.split_tokens(tokens, drawn, pos_embed=self.pos_embed)

    model, inputs = Split(), (rand(B, N, 4).float(), torch.rand(B, N))
    expected = model(*inputs)
    compiled = torch.compile(model, fullgraph=True)(*inputs)
    exported = torch.export.export(model, inputs).module()(*inputs)
    for found in (compiled, exported):
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def _op(name: str, *arguments: Any) -> tuple[Any, tuple[Any, ...]]:
    return getattr(torch.ops.cfmvit, name).default, arguments


def leaf(*shape: int) -> Tensor:
    return rand(*shape).float().requires_grad_()


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        _op("random_masking", torch.rand(2, 9), 3),
        _op("gather_tokens", leaf(B, N, 4), masking().keep, leaf(N, 4), COINS),
        _op("split_tokens", leaf(B, N, 4), masking().keep, masking().masked, leaf(N, 4), COINS),
        _op("restore_tokens", leaf(B, 5, 4), leaf(4), masking().restore, leaf(N, 4)),
        _op("gather_patches", leaf(2, 3, 8, 8), torch.tensor([[0], [3]]), 4, None, None, torch.float32),
    ],
    ids=["random_masking", "gather_tokens", "split_tokens", "restore_tokens", "gather_patches"],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck(op: Any, arguments: tuple[Any, ...], device: str) -> None:
    torch.library.opcheck(op, moved(arguments, device))


def test_double_backward_refuses() -> None:
    tokens = rand(B, N, 4).requires_grad_()
    out = ops.gather_tokens(tokens, masking().keep, impl="native").square().sum()
    (grad,) = torch.autograd.grad(out, tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="gather_tokens: double backward is not supported"):
        grad.sum().backward()
