"""What a detector returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfmvit._require import require
from cfmvit.detection.box_masks import BoxMasks

PARTS = ("detector", "frozen", "centerness")


@dataclass(frozen=True)
class ScoreParts:
    """What n scores were made of: ``detector ** (1 - w) * frozen ** w``, renormalised, times a power of ``centerness``.

    Attributes:
        detector: (n,) float32, the probability of the label by the finetuned half, over all labels and background.
        frozen: (n,) float32, the same by the frozen tower; None where it is not used.
        centerness: (n,) float32, of the proposal.
    """

    detector: Tensor
    frozen: Tensor | None
    centerness: Tensor

    def __getitem__(self, index: Any) -> ScoreParts:
        """Return the parts that a slice or a tensor selects."""
        frozen = None if self.frozen is None else self.frozen[index]
        return ScoreParts(self.detector[index], frozen, self.centerness[index])

    def to_list(self) -> list[dict[str, float | None]]:
        """Return ``[{"detector", "frozen", "centerness"}]``."""
        frozen = [None] * len(self.detector) if self.frozen is None else self.frozen.tolist()
        rows = zip(self.detector.tolist(), frozen, self.centerness.tolist())
        return [dict(zip(PARTS, row)) for row in rows]


@dataclass
class Detections:
    """Objects found in one image, by falling score.

    Attributes:
        boxes: (n, 4) float32 xyxy in pixels of the original image.
        scores: (n,) float32.
        label_ids: (n,) int64, index into the labels that were asked for.
        labels: n names.
        masks: n masks at the original size, drawn when asked for (``masks[row]``, ``masks.dense()``), or None.
        parts: what the scores were made of, where ``predict`` was told to explain them.
        proposals: (n,) int64, which of the image's proposals each is of, as ``Encoded`` has them; None for those of elsewhere.
    """

    boxes: Tensor
    scores: Tensor
    label_ids: Tensor
    labels: list[str]
    masks: BoxMasks | None = None
    parts: ScoreParts | None = None
    proposals: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        """Return the detections that a slice, an index tensor or a boolean mask selects."""
        rows = torch.arange(len(self))[index].reshape(-1)
        masks = None if self.masks is None else self.masks[rows]
        labels = [self.labels[row] for row in rows.tolist()]
        parts = None if self.parts is None else self.parts[rows]
        proposals = None if self.proposals is None else self.proposals[rows]
        return Detections(
            self.boxes[rows], self.scores[rows], self.label_ids[rows], labels, masks, parts, proposals
        )

    def salient(self, fraction: float = 0.25, floor: float = 0.02) -> Detections:
        """Return the best label of each place, of places whose score comes near the image's best one.

        Scores are products (of probabilities over all labels and background, and of the centerness cubed), so they fall with
        the number of labels and no fixed threshold fits.

        Args:
            fraction: least score as a share of the best one.
            floor: least score in any case.
        """
        if not len(self):
            return self
        nms = require("torchvision.ops", extra="detection").nms
        keep = nms(self.boxes, self.scores, 0.4)
        least = max(floor, fraction * self.scores.max().item())
        return self[keep[self.scores[keep] >= least]]

    def to_list(self) -> list[dict[str, Any]]:
        """Return ``[{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}]``, transformers' convention, and the parts of
        explained scores.
        """
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [
            {"score": score, "label": label, "box": dict(zip(corners, box)), **part}
            for score, label, box, part in zip(
                self.scores.tolist(), self.labels, self.boxes.tolist(), self._parts()
            )
        ]

    def _parts(self) -> list[dict[str, float | None]]:
        return [{} for _ in range(len(self))] if self.parts is None else self.parts.to_list()

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return COCO results: xywh boxes, and masks as compressed RLE; and the parts of explained scores.

        Args:
            category_ids: the data set's id of each label that was asked for.
        """
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        boxes = torch.cat([self.boxes[:, :2], sizes], dim=1).tolist()
        results: list[dict[str, Any]] = [
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label]),
                "bbox": box,
                "score": score,
                **part,
            }
            for box, score, label, part in zip(
                boxes, self.scores.tolist(), self.label_ids.tolist(), self._parts()
            )
        ]
        if self.masks is not None:
            for result, code in zip(results, self.masks.to_rle()):
                result["segmentation"] = code
        return results

    def to_torchvision(self) -> dict[str, Tensor]:
        """Return what torchvision's detectors do: ``boxes`` (n, 4) xyxy, ``labels`` (n,) int64 from 1 on, ``scores`` (n,) and,
        where there are masks, ``masks`` (n, 1, H, W) float32.
        """
        found = {"boxes": self.boxes, "labels": self.label_ids + 1, "scores": self.scores}
        if self.masks is not None:
            found["masks"] = self.masks.dense()[:, None].float()
        return found

    def to_detectron2(self, image_size: tuple[int, int]) -> Any:
        """Return a detectron2 ``Instances`` of an image of (H, W) pixels; ``pred_classes`` number the labels from 0.

        Raises:
            ImportError: the package ``detectron2`` is not installed.
        """
        structures = require("detectron2.structures", package="detectron2")
        fields = {
            "pred_boxes": structures.Boxes(self.boxes),
            "scores": self.scores,
            "pred_classes": self.label_ids,
        }
        if self.masks is not None:
            fields["pred_masks"] = self.masks.dense()
        return structures.Instances(image_size, **fields)

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections``.

        Raises:
            ImportError: the package ``supervision`` is not installed.
        """
        supervision = require("supervision", package="supervision")
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.dense().numpy(),
            confidence=self.scores.numpy(),
            class_id=self.label_ids.numpy(),
            data={"class_name": np.array(self.labels, dtype=np.str_)},
        )
