"""The same evaluation by the tools that define it, pycocotools and lvis: slow, one dict for each box."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfmvit.evaluation.average_precision import Precision
from cfmvit.evaluation.coco import accumulate_coco
from cfmvit.evaluation.columns import BOX, CATEGORY, IMAGE, SCORE, read_part
from cfmvit.evaluation.ground_truth import GroundTruth, IouType, read_json
from cfmvit.evaluation.lvis import accumulate_lvis
from cfmvit.evaluation.results import Results


def accumulate_slowly(
    truth: GroundTruth,
    results: Results,
    rows: NDArray[np.int64] | None,
    iou_type: IouType,
    categories: Collection[int],
) -> Precision:
    """Return the curves of some rows of the results, or of all, by the tool of the truth's style."""
    annotations = read_json(truth.path, "evaluate_results")["annotations"]
    for index, annotation in enumerate(annotations):
        # Both tools read a matched id of 0 as "no match", and files in the wild do count from 0.
        annotation["id"] = index + 1
    accumulate = accumulate_coco if truth.style == "coco" else accumulate_lvis
    return accumulate(truth, annotations, _entries(truth, results, rows, iou_type), iou_type, categories)


def _entries(
    truth: GroundTruth, results: Results, rows: NDArray[np.int64] | None, iou_type: IouType
) -> list[dict[str, Any]]:
    """Write rows as the tools expect them, with ``area`` and ids from 1."""
    found = results.columns
    images, categories = truth.known.image_ids.tolist(), truth.known.category_ids.tolist()
    areas = dict(zip(found.boxless.tolist(), found.boxless_areas.tolist()))
    entries: list[dict[str, Any]] = []
    for number in range(len(results)) if rows is None else rows.tolist():
        row = found.rows[number].tolist()
        entry: dict[str, Any] = {
            "id": len(entries) + 1,
            "image_id": images[int(row[IMAGE])],
            "category_id": categories[int(row[CATEGORY])],
            "score": row[SCORE],
            "iscrowd": 0,
        }
        if iou_type == "bbox":
            x, y, width, height = row[BOX]
            entry |= {"bbox": [x, y, width, height], "area": areas.get(number, width * height)}
        else:  # both tools would take the box's area where a result has both, and so sort masks by another size
            mask = json.loads(read_part(results.source, *found.mask_spans[number].tolist()))
            entry |= {"segmentation": mask, "area": float(found.mask_areas[number])}
        entries.append(entry)
    return entries
