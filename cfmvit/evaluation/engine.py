"""COCO and LVIS style evaluation by hotcoco, in native code on all cores."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require
from cfmvit.evaluation.average_precision import Precision
from cfmvit.evaluation.columns import AREA, BOX, CATEGORY, IMAGE, Columns, read_part
from cfmvit.evaluation.ground_truth import GroundTruth, IouType
from cfmvit.evaluation.results import Results

COCO_LIMIT = 100
_NO_LIMIT = 2**31  # LVIS caps detections of an image before it matches, and then matches all
_BATCH = 1000  # images whose masks are in memory together


def evaluator(
    truth: GroundTruth,
    results: Results,
    rows: NDArray[np.int64],
    iou_type: IouType,
    categories: Collection[int],
) -> Any:
    """Return a hotcoco evaluator that has matched every detection; images and categories go by their place in ``truth.known``.

    Args:
        rows: those of the results that take part, ascending.
        categories: the ids that take part.
    """
    hotcoco = require("hotcoco", extra="detection")
    params = hotcoco.Params(iou_type)
    params.cat_ids = np.searchsorted(truth.known.category_ids, sorted(categories)).tolist()
    params.max_dets = [_NO_LIMIT if truth.style == "lvis" else COCO_LIMIT]
    match = _match_boxes if iou_type == "bbox" else _match_masks
    return match(hotcoco, truth, results, rows, params)


def accumulate(matched: Any, truth: GroundTruth) -> Precision:
    """Return the curves of an evaluator."""
    matched.accumulate()
    found = matched.eval
    return Precision(
        category_ids=truth.known.category_ids[matched.params.cat_ids].tolist(),
        iou_thresholds=np.asarray(matched.params.iou_thrs),
        precision=found["precision"][..., -1],
        recall=found["recall"][..., -1],
    )


def _match_boxes(
    hotcoco: Any, truth: GroundTruth, results: Results, rows: NDArray[np.int64], params: Any
) -> Any:
    boxes, found = truth.annotations, results.columns
    known = hotcoco.COCO.from_arrays(
        _images(truth),
        _categories(truth),
        boxes.rows[:, IMAGE].astype(np.int64),
        boxes.rows[:, CATEGORY].astype(np.int64),
        boxes.rows[:, BOX],
        area=boxes.rows[:, AREA],
        iscrowd=_crowd(truth),
    )
    # Without a copy of them where all take part.
    table = found.rows if len(rows) == len(found.rows) else found.rows[rows]
    lvis = truth.style == "lvis"
    detections = hotcoco.LVISResults(known, table, max_dets=-1) if lvis else known.load_res(table)
    ids = np.searchsorted(rows, found.boxless)
    there = (
        (ids < len(rows)) & (rows[np.minimum(ids, len(rows) - 1)] == found.boxless) if len(rows) else ids > 0
    )
    if there.any():  # as both peers do it: the box of the mask, of the mask's size
        detections.update_anns(ids=ids[there] + 1, area=found.boxless_areas[there])
    matched = hotcoco.COCOeval(known, detections, "bbox", lvis_style=lvis)
    matched.params = params
    matched.evaluate()
    return matched


def _match_masks(
    hotcoco: Any, truth: GroundTruth, results: Results, rows: NDArray[np.int64], params: Any
) -> Any:
    """Match image by image: the masks of a data set are larger than all else."""
    known, found = truth.annotations, results.columns
    images = _images(truth)
    crowd = _crowd(truth)
    by_image = rows[np.argsort(found.rows[rows, IMAGE], kind="stable")]
    theirs = np.argsort(known.rows[:, IMAGE], kind="stable")
    stream = hotcoco.StreamingEval(_categories(truth), "segm", truth.style == "lvis", params)
    for first in range(0, len(images), _BATCH):
        limits = [first, first + _BATCH]
        ours = by_image[slice(*np.searchsorted(found.rows[by_image, IMAGE], limits))]
        true = theirs[slice(*np.searchsorted(known.rows[theirs, IMAGE], limits))]
        # A box of the mask's area: boxes aren't looked at, but hotcoco goes by their size.
        table = found.rows[ours]
        table[:, BOX] = np.stack(
            [np.zeros(len(ours)), np.zeros(len(ours)), found.mask_areas[ours], np.ones(len(ours))], axis=1
        )
        annotations = [
            {
                "id": number + 1,
                "image_id": int(row[IMAGE]),
                "category_id": int(row[CATEGORY]),
                "bbox": row[BOX],
                "area": row[AREA],
                "iscrowd": int(crowd[number]),
                "segmentation": mask,
            }
            for number, row, mask in zip(
                true.tolist(), known.rows[true].tolist(), _masks(truth.path, known, true)
            )
        ]
        stream.update(
            images[first : first + _BATCH],
            annotations,
            table,
            segmentation=_masks(results.source, found, ours),
        )
    return stream.finalize()


def _masks(source: Any, columns: Columns, numbers: NDArray[np.int64]) -> list[Any]:
    """Parse the segmentations of some entries."""
    if not len(numbers):
        return []
    spans = columns.mask_spans[numbers]
    start = int(spans[:, 0].min())
    end = int(spans.sum(axis=1).max())
    if end - start > 4 * int(spans[:, 1].sum()) + (1 << 24):  # they lie scattered
        parts = [read_part(source, *span) for span in spans.tolist()]
    else:
        text = read_part(source, start, end - start)
        parts = [text[at - start : at - start + size] for at, size in spans.tolist()]
    return json.loads(b"[" + b",".join(parts) + b"]")


def _images(truth: GroundTruth) -> list[dict[str, Any]]:
    place = {key: number for number, key in enumerate(truth.known.category_ids.tolist())}
    entries = []
    for number, key in enumerate(truth.known.image_ids.tolist()):
        height, width = truth.known.sizes[number].tolist()
        entry: dict[str, Any] = {"id": number, "height": height, "width": width, "file_name": ""}
        if truth.style == "lvis":
            for name in ("neg_category_ids", "not_exhaustive_category_ids"):
                entry[name] = [place[category] for category in truth.images[key][name] if category in place]
        entries.append(entry)
    return entries


def _categories(truth: GroundTruth) -> list[dict[str, Any]]:
    return [{"id": number, "name": str(number)} for number in range(len(truth.categories))]


def _crowd(truth: GroundTruth) -> NDArray[np.uint8]:
    """LVIS knows no crowds: its tool takes them for objects."""
    crowd = truth.annotations.crowd
    return crowd if truth.style == "coco" else np.zeros_like(crowd)
