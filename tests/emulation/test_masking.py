"""The masking family's CUDA kernels, emulated, against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cfmvit import ops

from ..ops.families import strided
from .emulator import DTYPES, WIDTHS, Emulator, assert_matches, rand

B, N = 3, 13
KEEP_POS = torch.tensor([True, False, True])
MASKING = ops.random_masking(B, N, 0.6, generator=torch.Generator().manual_seed(5))
KEPT = MASKING.keep.shape[1]
# Entries of an index that names some tokens twice, thrice or never, and of one that is out of range.
REPEATED = torch.tensor([[0, 2, 0, 7, 7], [3, 3, 3, 1, 12], [12, 0, 1, 2, 0]])
OUTSIDE = torch.tensor([[-1, 2, 0, 7, 8], [3, 4, N, 1, 12], [12, 1 << 40, 1, 2, 0]])


def exactly(x: Tensor) -> Tensor:
    return x.double().requires_grad_() if x.is_floating_point() else x


def check_gather(masking: Emulator, inputs: dict[str, Tensor], lead: int = 0) -> None:
    """Compare with gather_tokens by the index and by the second one."""
    found = masking("gather_tokens", inputs, lead=lead)
    exact = {name: exactly(x) for name, x in inputs.items()}
    tokens, more = exact["tokens"], {name: exact.get(name) for name in ("pos_embed", "keep_pos")}
    for name, out in (("index", "out"), ("second", "out2")):
        if name in inputs:
            expected: Any = ops.gather_tokens(tokens, inputs[name], **more, impl="reference")
            assert_matches(found[out], expected)


def check_gather_backward(masking: Emulator, inputs: dict[str, Any], lead: int = 0) -> None:
    """Compare with the reference's gradients of tokens and of positions."""
    given = {"num_tokens": N, "samples": 2, "needs_pos": 1, **inputs}
    found = masking("gather_tokens_backward", given, lead=lead)
    batch, _, width = inputs["grad"].shape
    tokens, pos = (exactly(torch.zeros(*size, N, width)) for size in ((batch,), ()))
    pairs = [(inputs[a], inputs[b]) for a, b in (("grad", "index"), ("grad2", "second")) if a in inputs]
    outs = [
        ops.gather_tokens(tokens, index, pos_embed=pos, keep_pos=inputs.get("keep_pos"), impl="reference")
        for _, index in pairs
    ]
    grads = torch.autograd.grad(outs, [tokens, pos], [grad.double() for grad, _ in pairs])
    assert_matches(found["grad_tokens"], grads[0])
    if given["needs_pos"]:
        assert_matches(found["grad_pos"], grads[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_gather_tokens(masking: Emulator, width: int, dtype: torch.dtype) -> None:
    more = {"index": MASKING.masked, "keep_pos": KEEP_POS}
    tokens, pos = rand(B, N, width, dtype=dtype), rand(N, width, dtype=dtype, seed=1)
    check_gather(masking, {"tokens": tokens, "pos_embed": pos, **more})
    check_gather_backward(masking, {"grad": rand(*MASKING.masked.shape, width, dtype=dtype), **more})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_split_tokens(masking: Emulator, dtype: torch.dtype) -> None:
    """Rows go to two tensors in one launch, and come back from two."""
    both = {"index": MASKING.keep.int(), "second": MASKING.masked}
    check_gather(
        masking, {"tokens": rand(B, N, 72, dtype=dtype), "pos_embed": rand(N, 72, dtype=dtype), **both}
    )
    grads = {
        "grad": rand(B, KEPT, 72, dtype=dtype),
        "grad2": rand(*MASKING.masked.shape, 72, dtype=dtype, seed=1),
    }
    for needs_pos in (0, 1):
        check_gather_backward(masking, {**grads, **both, "keep_pos": KEEP_POS, "needs_pos": needs_pos})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_tokens_anywhere_in_memory(masking: Emulator, dtype: torch.dtype) -> None:
    """Rows with gaps, addresses that no vector fits, narrow and strided indices."""
    narrow = MASKING.masked.int()
    for lead in (0, 1):
        check_gather(masking, {"tokens": strided(rand(B, N, 64, dtype=dtype)), "index": narrow}, lead)
        grad = strided(rand(*narrow.shape, 64, dtype=dtype))
        check_gather_backward(masking, {"grad": grad, "index": narrow}, lead)
    across = MASKING.masked.t().contiguous().t()
    check_gather(masking, {"tokens": rand(B, N, 40, dtype=dtype), "index": across})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [16, 33])
def test_repeated_entries_add_up(masking: Emulator, width: int, dtype: torch.dtype) -> None:
    grad = rand(*REPEATED.shape, width, dtype=dtype)
    check_gather(masking, {"tokens": rand(B, N, width, dtype=dtype), "index": REPEATED})
    check_gather_backward(masking, {"grad": grad, "index": REPEATED})
    check_gather_backward(
        masking,
        {"grad": grad, "index": REPEATED, "grad2": -grad, "second": REPEATED.flip(1), "keep_pos": KEEP_POS},
    )


@pytest.mark.parametrize("samples", [1, 4, 5, 9])
def test_sums_over_many_samples(masking: Emulator, samples: int) -> None:
    """More samples than a thread loads ahead, in partial sums of any size."""
    index = ops.random_masking(9, N, 0.5, generator=torch.Generator().manual_seed(1)).keep
    grad = rand(*index.shape, 24, dtype=torch.float32)
    check_gather_backward(masking, {"grad": grad, "index": index, "samples": samples})
    check_restore_backward(masking, 9, 24, torch.float32, samples=samples)


@pytest.mark.parametrize("shape", [(0, N, 8), (B, N, 0)], ids=str)
def test_nothing(masking: Emulator, shape: tuple[int, ...]) -> None:
    batch, _, width = shape
    index = MASKING.masked[:batch]
    check_gather(masking, {"tokens": rand(*shape), "index": index})
    check_gather_backward(masking, {"grad": rand(batch, index.shape[1], width), "index": index})
    check_restore(masking, batch, width, torch.float32)
    check_restore_backward(masking, batch, width, torch.float32)


def test_entries_out_of_range(masking: Emulator) -> None:
    """They give rows of zeros, and no gradient."""
    tokens, grad = rand(B, N, 16, dtype=torch.float32), rand(*OUTSIDE.shape, 16, dtype=torch.float32)
    found = masking("gather_tokens", {"tokens": tokens, "index": OUTSIDE})["out"]
    sound = (OUTSIDE >= 0) & (OUTSIDE < N)
    assert not found[~sound].any()
    rows = tokens.gather(1, OUTSIDE.where(sound, 0)[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(found[sound], rows[sound], atol=0, rtol=0)
    given = {"grad": grad, "index": OUTSIDE, "num_tokens": N, "samples": 2, "needs_pos": 0}
    back = masking("gather_tokens_backward", given)["grad_tokens"]
    torch.testing.assert_close(back.sum((1, 2)), (grad * sound[..., None]).sum((1, 2)))


def check_restore(masking: Emulator, batch: int, width: int, dtype: torch.dtype, lead: int = 0) -> None:
    order = ops.random_masking(batch, N, 0.6, generator=torch.Generator().manual_seed(2)).restore
    inputs = {
        "visible": rand(batch, KEPT, width, dtype=dtype),
        "mask_token": rand(width, dtype=dtype, seed=1),
        "restore": order,
        "pos_embed": rand(N, width, dtype=dtype, seed=2),
    }
    for given in (inputs, {**inputs, "restore": order.int(), "pos_embed": None}):
        exact = [x.double() if x is not None and x.is_floating_point() else x for x in given.values()]
        found = masking("restore_tokens", given, lead=lead)["out"]
        assert_matches(found, ops.restore_tokens(*exact[:3], pos_embed=exact[3], impl="reference"))


def check_restore_backward(
    masking: Emulator, batch: int, width: int, dtype: torch.dtype, lead: int = 0, samples: int = 2
) -> None:
    order = ops.random_masking(batch, N, 0.6, generator=torch.Generator().manual_seed(2)).restore
    grad = rand(batch, N, width, dtype=dtype)
    leaves = [exactly(torch.zeros(size)) for size in ((batch, KEPT, width), (width,), (N, width))]
    out = ops.restore_tokens(leaves[0], leaves[1], order, pos_embed=leaves[2], impl="reference")
    expected = torch.autograd.grad(out, leaves, grad.double())
    for needs_pos in (0, 1):
        given = {"grad": grad, "restore": order, "kept": KEPT, "samples": samples, "needs_pos": needs_pos}
        found = masking("restore_tokens_backward", given, lead=lead)
        for name, truth in zip(("grad_visible", "grad_mask", "grad_pos")[: 2 + needs_pos], expected):
            assert_matches(found[name], truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_restore_tokens(masking: Emulator, width: int, dtype: torch.dtype) -> None:
    lead = width % 2
    check_restore(masking, B, width, dtype, lead)
    check_restore_backward(masking, B, width, dtype, lead)


def test_restoring_what_is_no_permutation(masking: Emulator) -> None:
    """A token restored twice gets both gradients, one never restored none; out of range gives zeros and no gradient."""
    order = torch.tensor([[0, 0, 1, 3, -1, 9]])
    visible, mask_token = rand(1, 3, 16, dtype=torch.float32), rand(16, dtype=torch.float32, seed=1)
    found = masking("restore_tokens", {"visible": visible, "mask_token": mask_token, "restore": order})["out"]
    assert torch.equal(found[0, :4], torch.stack([visible[0, 0], visible[0, 0], visible[0, 1], mask_token]))
    assert not found[0, 4:].any()
    grad = rand(1, 6, 16, dtype=torch.float32)
    given = {"grad": grad, "restore": order, "kept": 3, "samples": 1, "needs_pos": 1}
    back = masking("restore_tokens_backward", given)
    rows = grad[0]
    expected = torch.stack([rows[0] + rows[1], rows[2], torch.zeros(16)])
    torch.testing.assert_close(back["grad_visible"][0], expected)
    torch.testing.assert_close(back["grad_mask"], rows[3])
    torch.testing.assert_close(back["grad_pos"], torch.cat([rows[:4], torch.zeros(2, 16)]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 31, 32, 33, 196, 256, 257, 1000])
def test_random_masking(masking: Emulator, count: int, dtype: torch.dtype) -> None:
    """Coarse noise has many ties, both signs and both zeros."""
    noise = (rand(2, count) * 4).round().to(dtype) / 4
    noise[0, ::2] = -0.0
    noise[1, 0] = float("inf")
    for given in (noise, noise.t().contiguous().t()):
        found = masking("random_masking", {"noise": given, "kept": count // 3})
        order = torch.argsort(noise, dim=1, stable=True)
        assert torch.equal(torch.cat([found["keep"], found["masked"]], 1), order)
        assert torch.equal(found["restore"], order.argsort(dim=1, stable=True))


def test_noise_that_is_nan_ranks_last(masking: Emulator) -> None:
    noise = torch.tensor([[float("nan"), 2.0, -float("nan"), float("inf"), 1.0]])
    found = masking("random_masking", {"noise": noise, "kept": 2})
    assert torch.cat([found["keep"], found["masked"]], 1).tolist() == [[4, 1, 3, 0, 2]]
