"""Detection results in the COCO results format, read and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require
from cfmvit.data.rle import check_rle, is_size
from cfmvit.evaluation.columns import BOX, SCORE, Columns, read_columns, read_part
from cfmvit.evaluation.ground_truth import GroundTruth, check_box, check_score, is_known

_BLANK = 1 << 10
_KEYS = ("image_id", "category_id", "score", "bbox", "segmentation")
_JSON_TYPES = {"{": "dict", '"': "str", "t": "bool", "f": "bool", "n": "NoneType"}


@dataclass
class Results:
    """Results as columns, and the text that they are from."""

    columns: Columns
    source: Path | bytes

    def __len__(self) -> int:
        return len(self.columns.rows)


def load_results(
    results: str | Path | Sequence[dict[str, Any]], truth: GroundTruth, iou_types: Sequence[str]
) -> Results:
    """Read results; of six million detections a third of a gigabyte is held.

    Args:
        results: a json file or its contents, which are not written to: a list of ``{"image_id", "category_id", "score",
            "bbox": [x, y, w, h], "segmentation": compressed RLE}``; which of the last two are needed follows from
            ``iou_types``.

    Raises:
        FileNotFoundError, ValueError: naming the file, the entry and the field.
    """
    source: Path | bytes
    name = "results"
    if isinstance(results, (str, Path)):
        name, source = str(results), Path(results)
        if not Path(results).is_file():
            raise FileNotFoundError(f"evaluate_results: {name} does not exist")
    elif isinstance(results, (list, tuple)):
        source = _as_json(results, name, truth, iou_types)
    else:
        raise ValueError(
            f"evaluate_results: {name} must be a list of detections, got {type(results).__name__}"
        )

    def put_right(columns: Columns, number: int, entry: Any) -> None:
        where = f"{name}[{number}]"
        found = _checked(entry, where, truth, iou_types)
        columns.rows[number, [0, 5, 6]] = [
            np.searchsorted(truth.known.image_ids, found["image_id"]),
            found["score"],
            np.searchsorted(truth.known.category_ids, found["category_id"]),
        ]
        if "bbox" in found:
            columns.rows[number, BOX] = found["bbox"]
        if "segmentation" in found:
            _put_mask(columns, number, found, where, "segm" in iou_types)

    columns = read_columns(
        source,
        truth.known,
        truth=False,
        boxes="bbox" in iou_types,
        masks="segm" in iou_types,
        put_right=put_right,
    )
    if columns.broken_at >= 0:
        raise ValueError(_broken(source, name, columns))
    return Results(columns, source)


def highest(rows: NDArray[np.float64], column: int, limit: int) -> NDArray[np.int64] | None:
    """Return which rows have the ``limit`` highest scores of their image or category, ascending, or None where all have.

    Of equal scores the first are taken.
    """
    key = rows[:, column].astype(np.int64)
    over = np.bincount(key, minlength=1) > limit
    if not over.any():
        return None
    crowded = over[key]
    candidates = np.flatnonzero(crowded)
    candidates = candidates[np.lexsort((-rows[candidates, SCORE], key[candidates]))]
    groups = key[candidates]
    rank = np.arange(len(groups)) - np.searchsorted(groups, groups)
    kept = ~crowded
    kept[candidates[rank < limit]] = True
    return np.flatnonzero(kept)


def with_area(results: Results, rows: NDArray[np.int64] | None, iou_type: str) -> NDArray[np.int64] | None:
    """Return which of some rows, None for all, have an area: LVIS's tool leaves the others out, once it has capped an image's.

    Returns:
        their numbers, ascending, or None for all.
    """
    found = results.columns
    if iou_type == "segm":
        areas = found.mask_areas
    else:
        _, _, width, height = found.rows[:, BOX].T
        areas = width * height
        areas[found.boxless] = found.boxless_areas
    sized = areas > 0
    if sized.all():
        return rows
    return np.flatnonzero(sized) if rows is None else rows[sized[rows]]


def _as_json(results: Sequence[Any], name: str, truth: GroundTruth, iou_types: Sequence[str]) -> bytes:
    """Write results that are in memory as json, so that one reader serves both; of numbers that are NumPy's, too."""
    entries = [
        {key: entry[key] for key in _KEYS if key in entry} if isinstance(entry, dict) else entry
        for entry in results
    ]
    try:
        return json.dumps(entries, default=_plain).encode()
    except (TypeError, ValueError, RecursionError):
        for number, entry in enumerate(results):
            _checked(entry, f"{name}[{number}]", truth, iou_types)
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    raise TypeError(f"evaluate_results: results must be what json can hold, got {type(value).__name__}")


def _put_mask(columns: Columns, number: int, found: dict[str, Any], where: str, wanted: bool) -> None:
    mask = require("pycocotools.mask", extra="detection")
    area = float(mask.area(found["segmentation"]))
    if "bbox" not in found:
        columns.rows[number, BOX] = mask.toBbox(found["segmentation"])
        columns.boxless_areas[columns.boxless == number] = area
    if wanted:
        columns.mask_areas[number] = area
        if not columns.mask_spans[number, 1]:
            raise ValueError(f"evaluate_results: {where}: keys must not be escaped")


def _broken(source: Path | bytes, name: str, columns: Columns) -> str:
    at = columns.broken_at
    if not read_part(source, 0, min(at, _BLANK)).strip(b"\xef\xbb\xbf \t\r\n"):
        first = read_part(source, at, 1).decode("latin-1")
        kind = _JSON_TYPES.get(first, "a number" if first and first in "-0123456789" else "")
        if kind:
            return f"evaluate_results: {name} must be a list of detections, got {kind}"
    return f"evaluate_results: {name} is not valid json: {name}[{len(columns.rows)}] breaks off or is malformed at byte {at}"


def _checked(entry: Any, where: str, truth: GroundTruth, iou_types: Sequence[str]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"evaluate_results: {where} must be an object, got {type(entry).__name__}")
    for key, known in (("image_id", truth.images), ("category_id", truth.categories)):
        if key not in entry:
            raise ValueError(f"evaluate_results: {where} has no {key}")
        if not is_known(entry[key], known):
            raise ValueError(
                f"evaluate_results: {where} refers to {key} {entry[key]}, which {truth.path} does not list"
            )
    if "score" not in entry:
        raise ValueError(f"evaluate_results: {where} has no score")
    check_score(entry["score"], where)
    found = {key: entry[key] for key in ("image_id", "category_id", "score")}
    if "segm" in iou_types or "bbox" not in entry:
        _check_rle(entry.get("segmentation"), where, truth.images[entry["image_id"]])
        found["segmentation"] = entry["segmentation"]
    if "bbox" in iou_types and "bbox" in entry:
        check_box(entry["bbox"], where)
        found["bbox"] = entry["bbox"]
    return found


def _check_rle(rle: Any, where: str, image: dict[str, Any]) -> None:
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), (str, bytes)) or "size" not in rle:
        raise ValueError(
            f"evaluate_results: {where}: segmentation must be a compressed RLE (counts and size) where there is no "
            f"bbox or masks are evaluated, got {type(rle).__name__ if not isinstance(rle, dict) else sorted(rle)}"
        )
    size = rle["size"]
    if "height" in image and "width" in image:
        size = [image["height"], image["width"]]
    elif not is_size(size):
        raise ValueError(
            f"evaluate_results: {where}: the RLE's size must be [height, width], two positive integers, got {size!r}"
        )
    check_rle(rle, f"evaluate_results: {where}", *size)
