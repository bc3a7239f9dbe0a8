"""Attention and GELU in pieces, beside those all at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("timm")
from cfmvit.models import pieces
from cfmvit.models.blocks import Attention, TanhGELU


@pytest.mark.parametrize("limit", [1, 3 * 4 * 24 * 16 * 2, 3 * 4 * 24 * 16 * 4 * 3, 1 << 20])
@pytest.mark.parametrize("causal", [False, True])
def test_pieces_of_any_size_have_the_bits_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, limit: int, causal: bool
) -> None:
    monkeypatch.setattr(pieces, "_BYTES", limit)
    qkv = torch.randn(5, 24, 3, 4, 16).bfloat16().permute(2, 0, 3, 1, 4)
    mask = None if causal else torch.rand(5, 1, 1, 24) < 0.7
    query, key, value = qkv.float()
    whole = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    with torch.no_grad():
        assert torch.equal(pieces.attend_in_pieces(qkv, mask, causal), whole.bfloat16())


def test_inference_has_the_numbers_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_BYTES", 1)
    torch.manual_seed(0)
    attention, x = Attention(32, 4, qkv_bias=True), torch.randn(3, 20, 32)
    with torch.autocast("cpu", torch.bfloat16):
        trained = attention(x)
        with torch.no_grad():
            inferred = attention(x)
    assert trained.requires_grad and torch.equal(inferred, trained)


def test_no_sequence() -> None:
    with torch.no_grad():
        assert pieces.attend_in_pieces(torch.zeros(3, 0, 4, 9, 16).bfloat16(), None, False).shape == (
            0,
            4,
            9,
            16,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_in_place_is_pytorchs(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(pieces, "_HIDDEN", 7)
    x = torch.cat([torch.linspace(-12, 12, 1999), torch.tensor([0.0, -0.0, 1e4, -1e4, torch.inf])]).to(dtype)
    expected = F.gelu(x.double(), approximate="tanh")
    with torch.no_grad():
        found = TanhGELU()(given := x.clone().view(4, -1))
    assert found is given
    tolerance = 2e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.flatten().double(), expected, atol=2e-6, rtol=tolerance)


def test_gelu_that_is_differentiated_leaves_its_input() -> None:
    x = torch.randn(3, 5)
    kept = x.clone().requires_grad_()
    assert TanhGELU()(kept).requires_grad and torch.equal(kept, x)
    assert torch.equal(TanhGELU()(kept), F.gelu(x, approximate="tanh"))


def test_gelu_of_nothing() -> None:
    with torch.no_grad():
        assert TanhGELU()(torch.zeros(0, 4, 16)).shape == (0, 4, 16)


def test_gelu_of_strides() -> None:
    x = torch.randn(4, 6).T
    with torch.no_grad():
        torch.testing.assert_close(TanhGELU()(x), F.gelu(x, approximate="tanh"))


def test_a_trace_holds_for_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_HIDDEN", 7)
    monkeypatch.setattr(pieces, "_BYTES", 1)
    model = torch.nn.Sequential(Attention(32, 4, qkv_bias=True), TanhGELU()).bfloat16().eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 4, 32).bfloat16())
        x = torch.randn(3, 9, 32).bfloat16()
        torch.testing.assert_close(traced(x), model(x))
