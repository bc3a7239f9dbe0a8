"""Locality, of tokens that are made to say what they should."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cfmvit.evaluation import locality


class _Numbered:
    """Images that hold nothing but their number."""

    def __len__(self) -> int:
        return 5

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": torch.full((3, 8, 8), index, dtype=torch.uint8)}


@pytest.fixture
def model() -> nn.Module:
    made: Any = nn.Identity()
    made.device, made.embed_dim, made.visual = torch.device("cpu"), 6, SimpleNamespace(patch_size=2)
    return made


def _drawn(number: int) -> torch.Tensor:
    return torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(number))


def test_shares_are_those_of_an_analysis_of_variance(model: nn.Module) -> None:
    def tokens(image: torch.Tensor, number: int) -> torch.Tensor:
        return _drawn(number) + 2 * _drawn(100 + number).mean(1, keepdim=True)

    rows = torch.cat([tokens(torch.empty(0), n) for n in range(5)]).double()
    rows = rows / rows.norm(dim=-1, keepdim=True)
    within = (rows - rows.mean(1, keepdim=True)).square().sum()
    whole = (rows - rows.mean((0, 1))).square().sum()
    assert locality(model, _Numbered(), tokens)["within"] == pytest.approx((within / whole).item(), rel=1e-9)
    first = locality(model, _Numbered(), tokens, limit=1)
    assert first["within"] == pytest.approx(1), "of one image, all variance is within it"


def test_what_an_image_says_as_a_whole_is_not_local(model: nn.Module) -> None:
    def whole(image: torch.Tensor, number: int) -> torch.Tensor:
        return _drawn(number)[:, :1].expand(-1, 16, -1)

    found = locality(model, _Numbered(), whole, lambda image, number: _drawn(number))
    assert found["within"] == pytest.approx(0, abs=1e-12)
    assert abs(found["agreement"]) < 1e-6
    constant = locality(model, _Numbered(), lambda image, number: torch.ones(1, 16, 6))
    assert not constant["within"] > 0


def test_predictions_agree_in_what_is_local_alone(model: nn.Module) -> None:
    def tokens(image: torch.Tensor, number: int) -> torch.Tensor:
        return nn.functional.normalize(_drawn(number), dim=-1)

    def agreement(predicted: Any) -> float:
        return locality(model, _Numbered(), tokens, predicted)["agreement"]

    assert agreement(tokens) == pytest.approx(1)
    assert agreement(lambda image, number: 3 * tokens(image, number)) == pytest.approx(1), "of any length"
    assert abs(agreement(lambda image, number: tokens(image, number + 50))) < 0.2
