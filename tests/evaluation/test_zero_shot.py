"""Zero-shot accuracy of images and of regions, with a stand-in model whose features are colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cfmvit.evaluation import classify_images, classify_regions, region_embeddings, topk_accuracy

COLOURS = torch.eye(3)


class _Visual(nn.Module):
    patch_size = 8
    grid = 12
    depth = 1

    def forward_features(self, images: torch.Tensor, **_: object) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return nn.functional.avg_pool2d(images.float(), self.patch_size).flatten(2).transpose(1, 2)


class _Palette(nn.Module):
    """Tokens are the mean colour of a patch."""

    device, embed_dim = torch.device("cpu"), 3

    def __init__(self) -> None:
        super().__init__()
        self.visual = _Visual()

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.visual.forward_features(images).mean(dim=1)

    def encode_dense(self, images: torch.Tensor, **_: object) -> torch.Tensor:
        return self.visual.forward_features(images)


@dataclass
class _Category:
    name: str
    novel: bool


class _Squares:
    """Coloured squares on black, in images of two sizes; the label of the last one is wrong."""

    categories = [_Category("red", False), _Category("green", False), _Category("blue", True)]

    def __len__(self) -> int:
        return 4

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        side = 64 if index % 2 else 96
        image = torch.zeros(3, side, side, dtype=torch.uint8)
        colour = index % 3
        image[colour, 16:40, 16:40] = 255
        image[2, 48:64, 48:64] = 255
        boxes = torch.tensor([[16.0, 16, 40, 40], [48, 48, 64, 64]])
        return {"image": image, "boxes": boxes, "labels": torch.tensor([colour if index < 3 else 1, 2])}


def test_regions() -> None:
    accuracy = classify_regions(_Palette().train(), _Squares(), COLOURS, batch_size=2)
    assert accuracy["top1"] == pytest.approx(7 / 8)
    assert accuracy["top1_novel"] == 1.0
    assert accuracy["top1_base"] == pytest.approx(2 / 3)
    assert accuracy["chance"] == pytest.approx(1 / 3)
    assert classify_regions(_Palette(), _Squares(), COLOURS, limit=3)["top1"] == 1.0
    with pytest.raises(ValueError, match="classes must have one row per category 3, got 2"):
        classify_regions(_Palette(), _Squares(), COLOURS[:2])


def test_region_embeddings_are_means_over_the_box() -> None:
    sample = _Squares().load(1, np.random.default_rng(0))
    with torch.no_grad():
        rows = region_embeddings(_Palette(), sample["image"][None], [sample["boxes"]])
    assert rows.shape == (2, 3)
    torch.testing.assert_close(rows.argmax(dim=1), sample["labels"])
    assert rows[0, 1] > 200
    assert rows[0, 0] == 0


def test_images() -> None:
    samples = [(torch.full((3, 8, 8 * (1 + label)), 9, dtype=torch.uint8), label) for label in (0, 1)]
    for image, label in samples:
        image[label] = 200
    accuracy = classify_images(_Palette(), samples, COLOURS)
    assert accuracy["top1"] == accuracy["top5"] == 1.0
    assert "top1_novel" not in accuracy


def test_topk_by_hand() -> None:
    embeddings = torch.tensor([[1.0, 0.2, 0.1], [0.2, 1.0, 0.1], [0.5, 0.4, 0.3]])
    accuracy = topk_accuracy(embeddings, COLOURS, torch.tensor([0, 2, 1]), ks=(1, 2), novel={2})
    assert accuracy["top1"] == pytest.approx(1 / 3)
    assert accuracy["top2"] == pytest.approx(2 / 3)
    assert accuracy["top1_novel"] == 0.0
    assert accuracy["top2_base"] == 1.0


def test_equal_classes_are_no_success_and_none_is_nan() -> None:
    assert topk_accuracy(torch.ones(4, 3), torch.ones(5, 3), torch.arange(4))["top1"] == 0.0
    assert math.isnan(topk_accuracy(torch.zeros(0, 3), COLOURS, torch.zeros(0, dtype=torch.int64))["top1"])


@pytest.mark.parametrize("labels", [torch.tensor([3]), torch.tensor([-1])], ids=["high", "low"])
def test_label_out_of_range(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"topk_accuracy: labels must lie in \[0, 3\), got"):
        topk_accuracy(torch.ones(1, 3), COLOURS, labels)


def test_nan_is_named() -> None:
    embeddings = torch.ones(3, 3)
    embeddings[1, 2] = torch.nan
    with pytest.raises(ValueError, match="embeddings must be finite, got NaN or infinity in row 1"):
        topk_accuracy(embeddings, COLOURS, torch.zeros(3, dtype=torch.int64))
