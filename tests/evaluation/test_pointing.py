"""Pointing, with a stand-in model whose tokens are the mean colour of their patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cfmvit.evaluation import dense_tokens, pointing_accuracy, value_tokens
from cfmvit.models import create_model

COLOURS = torch.eye(3)


class _Model(nn.Module):
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Identity()
        self.visual.patch_size = 8


def _colours(images: torch.Tensor, _: int) -> torch.Tensor:
    return nn.functional.avg_pool2d(images.float(), 8).flatten(2).transpose(1, 2) + 1e-3


@dataclass
class _Category:
    name: str
    novel: bool


class _Squares:
    """A red and a blue square of 16 pixels on black, in an image of 64 x 64 whose lower quarter is padding."""

    categories = [_Category("red", False), _Category("green", False), _Category("blue", True)]

    def __init__(self, *, boxes: list[list[float]]) -> None:
        self._boxes = torch.tensor(boxes)

    def __len__(self) -> int:
        return 1

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        image[0, 0:16, 0:16] = 200
        image[2, 24:40, 32:48] = 200
        image[2, 48:, :] = 255  # in the padding, where nobody may point
        labels = torch.tensor([0, 2])
        return {"image": image, "boxes": self._boxes, "labels": labels, "valid_size": (48, 64)}


def test_the_maximum_must_lie_in_the_box() -> None:
    right = _Squares(boxes=[[0, 0, 16, 16], [32, 24, 48, 40]])
    found = pointing_accuracy(_Model(), right, COLOURS, _colours)
    assert found == {"hit": 1.0, "hit_base": 1.0, "hit_novel": 1.0, "chance": pytest.approx(4 / 48)}
    # All of the maxima: a box over half of the blue square is missed.
    half = _Squares(boxes=[[0, 0, 16, 16], [32, 24, 40, 40]])
    assert pointing_accuracy(_Model(), half, COLOURS, _colours)["hit_novel"] == 0.0
    assert pointing_accuracy(_Model(), right, COLOURS[[2, 1, 0]], _colours)["hit"] == 0.0, "names exchanged"


def test_a_flat_map_points_nowhere() -> None:
    data = _Squares(boxes=[[0, 0, 16, 16], [32, 24, 48, 40]])
    assert pointing_accuracy(_Model(), data, COLOURS, lambda images, _: torch.ones(1, 64, 3))["hit"] == 0.0


def test_classes_must_fit() -> None:
    with pytest.raises(
        ValueError, match="pointing_accuracy: classes must have one row per category 3, got 2"
    ):
        pointing_accuracy(_Model(), _Squares(boxes=[[0, 0, 8, 8]] * 2), COLOURS[:2], _colours)


def _tower(depth: int) -> Any:
    torch.manual_seed(0)
    options = {"width": 32, "heads": 2, "depth": depth, "text_width": 32, "text_heads": 2, "text_depth": 1}
    return create_model("cfm_vit_tiny", vocab_size=50, decoder_width=32, **options).eval()


@torch.no_grad()
def test_tokens_of_large_images_are_those_of_the_frozen_tower() -> None:
    model, large = _tower(2), torch.randint(0, 256, (1, 3, 128, 96), dtype=torch.uint8)
    whole = model.visual.forward_features(large, window=8, global_blocks=(1,))
    torch.testing.assert_close(dense_tokens(model, large), whole)
    small = large[..., :64, :64]
    torch.testing.assert_close(dense_tokens(model, small), model.visual.forward_features(small))


@torch.no_grad()
def test_a_tokens_own_value_knows_nothing_of_the_others() -> None:
    model, image = _tower(1), torch.randint(0, 256, (1, 3, 128, 96), dtype=torch.uint8)
    other = image.clone()
    other[..., 64:, :] = 0
    ours, theirs = value_tokens(model, image), value_tokens(model, other)
    assert torch.equal(ours[:, :96], theirs[:, :96])
    assert not torch.equal(ours[:, 96:], theirs[:, 96:])
    assert not torch.equal(dense_tokens(model, image)[:, :96], dense_tokens(model, other)[:, :96])
