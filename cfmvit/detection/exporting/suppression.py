"""Non-maximum suppression of many images and labels at once, as torch and as ONNX have it; a score of -1 stands for none.

Letters: B images, K boxes of each, n labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfmvit._require import require

NONE = -1.0
Suppress = Callable[[Tensor, Tensor, float, int], Tensor]


def by_torchvision(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """Return scores (B, K, n) of boxes (B, K, 4), those of boxes that a better one of the same label overlaps removed.

    Args:
        iou: the least overlap that suppresses.
        most: scores of an image that take part, the best.
    """
    labels = scores.shape[2]
    best, index = scores.flatten(1).topk(min(most, scores.shape[1] * labels))
    row, label = index // labels, index % labels
    image = torch.arange(scores.shape[0], device=scores.device)[:, None]
    # Groups lie apart from each other. In float64: in float32, coordinates that far from zero are no longer exact.
    apart = (label + labels * image) * (boxes.amax().double() + 1)
    corners = boxes.double().gather(1, row[..., None].expand(-1, -1, 4)) + apart[..., None]
    nms = require("torchvision.ops", extra="detection").nms
    kept = nms(corners.flatten(0, 1), best.double().flatten(), iou)
    alive = torch.zeros_like(best, dtype=torch.bool).flatten().index_fill(0, kept, True).view_as(best)
    left = torch.full_like(scores.flatten(1), NONE)
    return left.scatter(1, index, torch.where(alive, best, NONE)).view_as(scores)


def by_onnx(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """Do the same by ONNX's operator, which knows images and labels; see ``translations``."""
    best = scores.flatten(1).topk(min(most, scores.shape[1] * scores.shape[2])).values
    scores = torch.where(scores >= best[:, -1, None, None], scores, NONE)
    return torch.where(_unsuppressed(boxes, scores, iou), scores, NONE)


@torch.library.custom_op("cfmvit_export::unsuppressed", mutates_args=())
def _unsuppressed(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Stand for ``NonMaxSuppression`` in a program: which of the scores (B, K, n) are left, bool."""
    return by_torchvision(boxes, scores, iou, scores.shape[1] * scores.shape[2]) > NONE


@_unsuppressed.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def translations() -> dict[Any, Callable[..., Any]]:
    """Return what ``torch.onnx.export`` writes for the operation of ``by_onnx``."""
    script = require("onnxscript", extra="onnx")
    op = script.opset18

    def unsuppressed(boxes: Any, scores: Any, iou: float) -> Any:
        by_label = op.Transpose(scores, perm=[0, 2, 1])
        everything, threshold = op.Constant(value_int=2**31 - 1), op.Constant(value_float=NONE / 2)
        kept = op.NonMaxSuppression(
            boxes, by_label, everything, op.Constant(value_float=iou), threshold
        )  # (any, 3): image, label, box
        none = op.Expand(op.Constant(value_float=0.0), op.Shape(by_label))
        ones = op.Expand(op.Constant(value_float=1.0), op.Slice(op.Shape(kept), [0], [1]))
        marked = op.Transpose(op.ScatterND(none, kept, ones), perm=[0, 2, 1])
        return op.Greater(marked, op.Constant(value_float=0.0))

    return {torch.ops.cfmvit_export.unsuppressed.default: unsuppressed}
