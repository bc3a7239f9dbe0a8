"""Similarity maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cfmvit.report import cosine_map, similarity_map
from cfmvit.report.colours import heat

TEXT = torch.tensor([0.0, 2.0, 0.0])


def tokens_with_one_hit(rows: int = 4, columns: int = 6, hit: tuple[int, int] = (1, 4)) -> torch.Tensor:
    tokens = torch.tensor([[3.0, 0.0, 0.0]]).repeat(rows * columns, 1)
    tokens[hit[0] * columns + hit[1]] = torch.tensor([0.0, 5.0, 0.0])
    return tokens


def test_cosine_by_hand() -> None:
    tokens = torch.tensor([[1.0, 1.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.1, 0.0]])
    expected = np.array([[0.5**0.5, -1], [0, 1]])
    np.testing.assert_allclose(cosine_map(tokens.bfloat16(), TEXT, (2, 2)), expected, atol=1e-6)


def test_the_brightest_place_is_that_of_the_text() -> None:
    image = Image.new("RGB", (96, 64), (90, 90, 90))
    picture = np.asarray(similarity_map(image, tokens_with_one_hit(), TEXT, (4, 6), min_side=480)).astype(int)
    assert picture.shape[0] == 320
    assert picture.shape[1] > 480
    row, column = np.unravel_index(picture[:, :480].sum(axis=2).argmax(), (320, 480))
    assert abs(row - 1.5 * 80) < 40
    assert abs(column - 4.5 * 80) < 40


def test_limits_make_maps_comparable() -> None:
    image = Image.new("RGB", (32, 32))
    tokens = torch.ones(16, 3)
    low = similarity_map(image, tokens, TEXT, (4, 4), limits=(0.0, 1.0))
    high = similarity_map(image, tokens, TEXT, (4, 4), limits=(-5.0, 0.6))
    assert np.asarray(high)[:, :500].mean() > np.asarray(low)[:, :500].mean() + 20


def test_heat_rises() -> None:
    ramp = heat(np.linspace(0, 1, 50)).astype(int) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(ramp) > 0).all()


@pytest.mark.parametrize(
    ("tokens", "text", "message"),
    [
        (torch.ones(5, 3), TEXT, r"tokens must have shape \(2 \* 2, C\), got \(5, 3\)"),
        (torch.ones(4, 3), torch.ones(2), r"text_embedding must have shape \(3,\), got \(2,\)"),
        (torch.full((4, 3), torch.nan), TEXT, "must be finite, got NaN"),
    ],
    ids=["tokens", "text", "nan"],
)
def test_bad_input(tokens: torch.Tensor, text: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similarity_map(Image.new("RGB", (8, 8)), tokens, text, (2, 2))
