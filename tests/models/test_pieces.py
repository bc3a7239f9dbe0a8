"""Attention in pieces, beside attention all at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("timm")
from cfmvit.models import pieces
from cfmvit.models.blocks import Attention


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
