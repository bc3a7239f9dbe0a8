"""From scored proposals to the detections of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cfmvit._require import require
from cfmvit.detection.config import ScoreConfig
from cfmvit.detection.image_input import Prepared
from cfmvit.detection.result import Detections


@dataclass
class Picked:
    """Detections in the coordinates of the resized image, by falling score.

    Attributes:
        boxes: (n, 4) xyxy.
        scores: (n,).
        label_ids: (n,) int64.
        rows: (n,) int64, which proposal each was.
    """

    boxes: Tensor
    scores: Tensor
    label_ids: Tensor
    rows: Tensor


def pick(boxes: Tensor, scores: Tensor, config: ScoreConfig, threshold: float, limit: int) -> Picked:
    """Keep the best detections: NMS within each class, then the highest scores.

    Args:
        boxes: (K, 4) xyxy, one a proposal.
        scores: (K, n), one a proposal and label.
        threshold: scores must exceed it.
        limit: detections of the image at most.
    """
    wide_enough = (boxes[:, 2:] > boxes[:, :2]).all(-1, keepdim=True)
    flat = torch.where(wide_enough, scores, -1.0).flatten()
    best, index = flat.topk(min(config.candidates, len(flat)))
    index = index[best > threshold]
    row, label = index // max(1, scores.shape[1]), index % max(1, scores.shape[1])
    nms = require("torchvision.ops", extra="detection").batched_nms
    kept = nms(boxes[row], flat[index], label, config.nms)[:limit]
    return Picked(boxes[row[kept]], flat[index[kept]], label[kept], row[kept])


def to_original(picked: Picked, labels: tuple[str, ...], image: Prepared) -> Detections:
    """Bring detections back to the pixels of the original image, on the CPU, without masks."""
    height, width = image.original_size
    ratio = torch.tensor([width / image.valid_size[1], height / image.valid_size[0]] * 2)
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = (picked.boxes.cpu() * ratio).clamp(min=0).minimum(limit)
    ids = picked.label_ids.cpu()
    names = [labels[i] for i in ids.tolist()]
    return Detections(boxes, picked.scores.cpu(), ids, names, proposals=picked.rows.cpu())
