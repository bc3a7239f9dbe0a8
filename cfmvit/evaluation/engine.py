"""COCO and LVIS style evaluation by hotcoco, in native code on all cores."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require
from cfmvit.evaluation.average_precision import Precision
from cfmvit.evaluation.columns import AREA, BOX, CATEGORY, IMAGE, Columns, read_part
from cfmvit.evaluation.ground_truth import GroundTruth, IouType
from cfmvit.evaluation.results import Results, highest

COCO_LIMIT = 100  # detections of an image and category
LVIS_LIMIT = 300  # of an image
_NO_LIMIT = 2**31  # LVIS caps detections of an image before it matches, and then matches all
_BATCH = 250  # images
_BINS = 10


Rows = NDArray[np.int64] | None  # ascending; None: all


def match(
    truth: GroundTruth, results: Results, rows: Rows, iou_type: IouType, categories: Collection[int]
) -> Any:
    """Return a hotcoco evaluator that has matched every detection.

    Images and categories go by their place in ``truth.known``, so that any integer may be an id.

    Args:
        rows: those of the results that take part.
        categories: the ids that take part.
    """
    found = results.columns
    some = found.rows if rows is None else found.rows[rows]
    # What hotcoco's stream can't do: boxes of another size than their own, and LVIS images of more detections than its cap.
    whole = iou_type == "bbox" and len(found.boxless) > 0
    whole |= truth.style == "lvis" and highest(some, IMAGE, LVIS_LIMIT) is not None
    if whole:
        every = np.flatnonzero(_counted(truth))
        return _match_whole(truth, results, iou_type, [categories], _images(truth), rows, every)[0]
    return _match_batches(truth, results, rows, iou_type, categories)


def calibration(
    truth: GroundTruth, results: Results, rows: Rows, iou_type: IouType, parts: Sequence[Collection[int]]
) -> list[list[tuple[float, float, int]]]:
    """Return, for each part, the mean score, the share that is right at IoU 0.5, and the number of the detections in ten bins.

    Args:
        rows, parts: see ``match``; scores lie in [0, 1].
    """
    sums = np.zeros((len(parts), _BINS, 3))
    for images, here, there in _batches(truth, results, rows):
        for total, matched in zip(sums, _match_whole(truth, results, iou_type, parts, images, here, there)):
            bins = matched.calibration(n_bins=_BINS, iou_threshold=0.5)["bins"]
            for place, item in enumerate(bins):
                if count := item["count"]:
                    total[place] += count * item["avg_confidence"], count * item["avg_accuracy"], count
    return [
        [(score / max(count, 1), right / max(count, 1), int(count)) for score, right, count in total]
        for total in sums.tolist()
    ]


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


def _params(truth: GroundTruth, iou_type: IouType, categories: Collection[int]) -> Any:
    params = require("hotcoco", extra="detection").Params(iou_type)
    params.cat_ids = np.searchsorted(truth.known.category_ids, sorted(categories)).tolist()
    params.max_dets = [_NO_LIMIT if truth.style == "lvis" else COCO_LIMIT]
    return params


def _match_batches(
    truth: GroundTruth, results: Results, rows: Rows, iou_type: IouType, categories: Collection[int]
) -> Any:
    """Match some images at a time: what hotcoco holds of a detection is larger than its row, and a mask larger still."""
    hotcoco = require("hotcoco", extra="detection")
    known, crowd = truth.annotations, _crowd(truth)
    params = _params(truth, iou_type, categories)
    stream = hotcoco.StreamingEval(_categories(truth), iou_type, truth.style == "lvis", params)
    for images, here, there in _batches(truth, results, rows):
        masks = _masks(truth.path, known, there) if iou_type == "segm" else [[]] * len(there)
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
            for number, row, mask in zip(there.tolist(), known.rows[there].tolist(), masks)
        ]
        table, codes = _table(results, here, iou_type)
        stream.update(images, annotations, table, segmentation=codes)
    return stream.finalize()


def _batches(
    truth: GroundTruth, results: Results, rows: Rows
) -> Iterator[tuple[list[dict[str, Any]], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield some images at a time, and the numbers of their results and of their annotations, ascending."""
    images = _images(truth)
    ours = _by_image(results.columns.rows, rows)
    counted = _counted(truth)
    theirs = _by_image(truth.annotations.rows, None if counted.all() else np.flatnonzero(counted))
    for first in range(0, len(images), _BATCH):
        yield (
            images[first : first + _BATCH],
            _between(results.columns.rows, ours, first, first + _BATCH),
            _between(truth.annotations.rows, theirs, first, first + _BATCH),
        )


def _by_image(rows: NDArray[np.float64], chosen: Rows) -> Rows:
    """Return the numbers of rows in the order of their images, or None where all lie in that order."""
    places = rows[:, IMAGE] if chosen is None else rows[chosen, IMAGE]
    if (places[1:] >= places[:-1]).all():
        return chosen
    order = np.argsort(places, kind="stable")
    return order if chosen is None else chosen[order]


def _between(rows: NDArray[np.float64], order: Rows, first: int, end: int) -> NDArray[np.int64]:
    if order is None:
        return np.arange(*np.searchsorted(rows[:, IMAGE], [first, end]))
    return np.sort(order[slice(*np.searchsorted(rows[order, IMAGE], [first, end]))])


def _table(results: Results, rows: Rows, iou_type: IouType) -> tuple[NDArray[np.float64], list[Any] | None]:
    """Return rows and their masks as hotcoco takes them."""
    found = results.columns
    table = found.rows if rows is None else found.rows[rows]
    if iou_type == "bbox":
        return table, None
    table = table.copy()
    table[:, BOX] = [0, 0, 0, 1]  # it goes by the size of the box, which is not looked at otherwise
    table[:, BOX.start + 2] = found.mask_areas if rows is None else found.mask_areas[rows]
    return table, _masks(results.source, found, np.arange(len(table)) if rows is None else rows)


def _match_whole(
    truth: GroundTruth,
    results: Results,
    iou_type: IouType,
    parts: Sequence[Collection[int]],
    images: list[dict[str, Any]],
    rows: Rows,
    boxes: NDArray[np.int64],
) -> list[Any]:
    """Match all images that are given at once; ``rows`` and ``boxes`` are the numbers of their results and annotations."""
    hotcoco = require("hotcoco", extra="detection")
    annotations, found = truth.annotations.rows[boxes], results.columns
    known = hotcoco.COCO.from_arrays(
        images,
        _categories(truth),
        annotations[:, IMAGE].astype(np.int64),
        annotations[:, CATEGORY].astype(np.int64),
        annotations[:, BOX],
        area=annotations[:, AREA],
        iscrowd=_crowd(truth)[boxes],
        segmentation=_masks(truth.path, truth.annotations, boxes) if iou_type == "segm" else None,
    )
    table, masks = _table(results, rows, iou_type)
    lvis = truth.style == "lvis"
    detections = known.load_res(table, segmentation=masks)
    if iou_type == "bbox" and len(
        found.boxless
    ):  # as both peers do it: the box of the mask, of the mask's size
        ids, areas = found.boxless, found.boxless_areas
        if rows is not None:
            there = np.isin(ids, rows)
            ids, areas = np.searchsorted(rows, ids[there]), areas[there]
        detections.update_anns(ids=ids + 1, area=areas)
    if lvis:  # which have been capped
        detections = detections.cap_detections_per_image(None)
    matched = []
    for part in parts:
        matched.append(hotcoco.COCOeval(known, detections, iou_type, lvis_style=lvis))
        matched[-1].params = _params(truth, iou_type, part)
        matched[-1].evaluate()
    return matched


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


def _counted(truth: GroundTruth) -> NDArray[np.bool_]:
    """Return which annotations count: LVIS's tool leaves out those without an area."""
    areas = truth.annotations.rows[:, AREA]
    return areas > 0 if truth.style == "lvis" else np.ones(len(areas), bool)


def _crowd(truth: GroundTruth) -> NDArray[np.uint8]:
    """LVIS knows no crowds: its tool takes them for objects."""
    crowd = truth.annotations.crowd
    return crowd if truth.style == "coco" else np.zeros_like(crowd)
