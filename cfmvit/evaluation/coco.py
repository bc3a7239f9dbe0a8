"""COCO style accumulation by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection
from typing import Any

import numpy as np

from cfmvit._require import require
from cfmvit.evaluation.average_precision import Precision
from cfmvit.evaluation.ground_truth import GroundTruth, IouType


def accumulate_coco(
    truth: GroundTruth,
    annotations: list[dict[str, Any]],
    results: list[dict[str, Any]],
    iou_type: IouType,
    categories: Collection[int],
) -> Precision:
    """Run COCOeval over every image of the ground truth, with at most 100 detections per image and category.

    Args:
        annotations: those of the truth, with ids from 1.
        results: entries with ``area``, ``bbox`` or ``segmentation``, and ids from 1.
        categories: the ids that take part; the detections and boxes of others are left out.
    """
    cocoeval = require("pycocotools.cocoeval", extra="detection")
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = [{"iscrowd": 0, **annotation} for annotation in annotations]
        evaluator = cocoeval.COCOeval(_coco(truth, annotations), _coco(truth, results), iou_type)
        evaluator.params.catIds = sorted(categories)
        evaluator.evaluate()
        evaluator.accumulate()
    return Precision(
        category_ids=list(evaluator.params.catIds),
        iou_thresholds=np.asarray(evaluator.params.iouThrs),
        precision=evaluator.eval["precision"][..., -1],
        recall=evaluator.eval["recall"][..., -1],
    )


def _coco(truth: GroundTruth, annotations: list[dict[str, Any]]) -> Any:
    coco = require("pycocotools.coco", extra="detection").COCO()
    coco.dataset = {
        "images": list(truth.images.values()),
        "categories": list(truth.categories.values()),
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
