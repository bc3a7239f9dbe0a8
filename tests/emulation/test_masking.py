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
COINS = torch.tensor([True, False, True])
MASKED = ops.random_masking(B, N, 0.6, generator=torch.Generator().manual_seed(5)).masked


def check_gather(
    masking: Emulator, tokens: Tensor, index: Tensor, lead: int = 0, **more: Tensor | None
) -> None:
    found = masking("gather_tokens", {"tokens": tokens, "index": index, **more}, lead=lead)
    exact = {name: x.double() if x is not None and x.is_floating_point() else x for name, x in more.items()}
    expected: Any = ops.gather_tokens(tokens.double(), index, **exact, impl="reference")
    assert_matches(found["out"], expected)


def check_backward(
    masking: Emulator, grad: Tensor, index: Tensor, coins: Tensor | None, lead: int = 0
) -> None:
    given = {"grad": grad, "index": index, "keep_pos": coins, "num_tokens": N}
    found = masking("gather_tokens_backward", given, lead=lead)
    batch, width = grad.shape[0], grad.shape[2]
    tokens, pos = (
        torch.zeros(*size, N, width, dtype=torch.float64, requires_grad=True) for size in ((batch,), ())
    )
    out = ops.gather_tokens(tokens, index, pos_embed=pos, keep_pos=coins, impl="reference")
    grads = torch.autograd.grad(out, [tokens, pos], grad.double())
    assert_matches(found["grad_tokens"], grads[0])
    assert_matches(found["grad_pos"], grads[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_gather_tokens(masking: Emulator, width: int, dtype: torch.dtype) -> None:
    tokens, pos = rand(B, N, width, dtype=dtype), rand(N, width, dtype=dtype, seed=1)
    check_gather(masking, tokens, MASKED, pos_embed=pos, keep_pos=COINS)
    check_backward(masking, rand(*MASKED.shape, width, dtype=dtype), MASKED, COINS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_tokens_anywhere_in_memory(masking: Emulator, dtype: torch.dtype) -> None:
    """Rows with gaps, addresses that no pack fits, narrow and strided indices."""
    for lead in (0, 1):
        check_gather(masking, strided(rand(B, N, 64, dtype=dtype)), MASKED.int(), lead, keep_pos=None)
        check_backward(masking, strided(rand(*MASKED.shape, 64, dtype=dtype)), MASKED.int(), None, lead)
    check_gather(masking, rand(B, N, 40, dtype=dtype), MASKED.t().contiguous().t())


@pytest.mark.parametrize("shape", [(0, N, 8), (B, N, 0)], ids=str)
def test_gather_tokens_of_nothing(masking: Emulator, shape: tuple[int, ...]) -> None:
    index = MASKED[: shape[0]]
    check_gather(masking, rand(*shape), index)
    check_backward(masking, rand(shape[0], index.shape[1], shape[2]), index, None)


def test_entries_out_of_range(masking: Emulator) -> None:
    """They give rows of NaN, and no gradient."""
    index = MASKED.clone()
    index[0, 0], index[1, 2], index[2, 1] = -1, N, 1 << 40
    tokens, grad = rand(B, N, 16, dtype=torch.float32), rand(*index.shape, 16, dtype=torch.float32)
    found = masking("gather_tokens", {"tokens": tokens, "index": index})["out"]
    sound = (index >= 0) & (index < N)
    assert found[~sound].isnan().all()
    rows = tokens.gather(1, index.where(sound, 0)[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(found[sound], rows[sound], atol=0, rtol=0)
    back = masking("gather_tokens_backward", {"grad": grad, "index": index, "num_tokens": N})["grad_tokens"]
    torch.testing.assert_close(back.sum((1, 2)), (grad * sound[..., None]).sum((1, 2)))
