"""Which boxes a step learns from: matching by IoU and random subsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cfmvit._require import require
from cfmvit.detection.config import HeadConfig

BACKGROUND = -1  # torchvision's Matcher.BELOW_LOW_THRESHOLD; its BETWEEN_THRESHOLDS is -2


def match(targets: Tensor, boxes: Tensor, high: float, low: float, *, force: bool = False) -> Tensor:
    """Match boxes to targets by IoU, with torchvision's ``Matcher``.

    Args:
        targets: (M, 4) xyxy.
        boxes: (N, 4) xyxy.
        force: also match each target's best boxes, however low their IoU.

    Returns:
        (N,) int64: the target's index where the IoU is at least ``high``, -1 below ``low``, -2 between.
    """
    detection = require("torchvision.models.detection._utils", extra="detection")
    ops = require("torchvision.ops", extra="detection")
    if not len(targets):
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    return detection.Matcher(high, low, allow_low_quality_matches=force)(ops.box_iou(targets, boxes))


def choose(
    matches: Tensor, count: int, foreground: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a random subset of matched boxes: at most ``foreground`` of ``count`` positives, filled with negatives.

    Returns:
        indices of the positives and of the negatives, both int64.
    """
    positive = _draw(matches >= 0, int(count * foreground), generator)
    negative = _draw(matches == BACKGROUND, count - len(positive), generator)
    return positive, negative


@dataclass
class Foreground:
    """Sampled regions that have an object.

    Attributes:
        boxes: one (R_i, 4) tensor an image.
        index: one (R_i,) tensor an image, the object's index within it.
    """

    boxes: list[Tensor]
    index: list[Tensor]


@dataclass
class Regions:
    """Sampled regions of a batch; R in all, the images one after another, an image's foreground first.

    Attributes:
        boxes: one (R_i, 4) tensor an image.
        labels: (R,) rows of the text matrix: 0 is background.
        targets: (R, 4) matched ground truth; meaningless at background.
        index: one (R_i,) tensor an image, the matched object's index within it; -1 at background.
    """

    boxes: list[Tensor]
    labels: Tensor
    targets: Tensor
    index: list[Tensor]

    def foreground(self, limit: int, wanted: list[Tensor]) -> Foreground:
        """Return the regions with a wanted object, at most ``limit`` an image.

        Args:
            wanted: one bool (M_i,) tensor an image, for each of its objects.
        """
        rows = []
        for index, objects in zip(self.index, wanted):
            positive = (index >= 0).nonzero()[:, 0]
            rows.append(positive[objects[index[positive]]][:limit])
        return Foreground(
            [boxes[row] for boxes, row in zip(self.boxes, rows)],
            [index[row] for index, row in zip(self.index, rows)],
        )


def check_truth(boxes: list[Tensor], labels: list[Tensor], classes: int, keys: Any) -> None:
    """Check the ground truth of a batch.

    Raises:
        ValueError: a box that is not finite or has no area, or a label outside the text matrix; names the image.
    """
    every, rows = torch.cat(boxes), torch.cat(labels)
    # One look at the whole batch; which image it is matters only when something is wrong.
    sound = (
        torch.isfinite(every).all()
        & (every[:, 2:] > every[:, :2]).all()
        & ((rows >= 0) & (rows < classes)).all()
    )
    if bool(sound) and [len(box) for box in boxes] == [len(label) for label in labels]:
        return
    for number, (box, label) in enumerate(zip(boxes, labels)):
        name = keys[number] if keys else f"image {number} of the batch"
        if not (torch.isfinite(box).all() and (box[:, 2:] > box[:, :2]).all()):
            raise ValueError(
                f"losses: boxes must be finite with x1 < x2 and y1 < y2, got {box.tolist()} in {name}"
            )
        if len(label) != len(box) or bool(((label < 0) | (label >= classes)).any()):
            raise ValueError(
                f"losses: labels must be one a box ({len(box)}), from 0 to {classes - 1}, got {label.tolist()} in {name}"
            )


def sample_regions(
    proposals: list[Tensor],
    boxes: list[Tensor],
    labels: list[Tensor],
    config: HeadConfig,
    generators: list[torch.Generator],
) -> Regions:
    """Sample the regions that the heads learn from; the ground truth is mixed into the proposals.

    Args:
        proposals: (K_i, 4) an image.
        boxes: (M_i, 4) ground truth an image.
        labels: (M_i,) category index an image, 0 the first category (row 1 of the text matrix).
        generators: one an image.
    """
    chosen, rows, targets, indices = [], [], [], []
    for candidates, truth, label, generator in zip(proposals, boxes, labels, generators, strict=True):
        candidates = torch.cat([truth, candidates])
        matches = match(truth, candidates, config.match, config.match)
        positive, negative = choose(matches, config.samples, config.foreground, generator)
        picked = torch.cat([positive, negative])
        index = matches[picked]
        chosen.append(candidates[picked])
        indices.append(index)
        background = label.new_zeros(len(negative))
        rows.append(torch.cat([label[index[: len(positive)]] + 1, background]))
        targets.append(torch.cat([truth[index[: len(positive)]], candidates.new_zeros(len(negative), 4)]))
    return Regions(chosen, torch.cat(rows), torch.cat(targets), indices)


def _draw(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    index = mask.nonzero()[:, 0]
    if len(index) <= count:
        return index
    return index[torch.randperm(len(index), generator=generator, device=mask.device)[:count]]
