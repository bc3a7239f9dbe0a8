"""Detection results in the COCO results format, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfmvit.data.rle import check_rle, is_size
from cfmvit.evaluation.ground_truth import GroundTruth, check_box, check_score, is_known, read_json


def load_results(
    results: str | Path | Sequence[dict[str, Any]], truth: GroundTruth, iou_types: Sequence[str]
) -> list[dict[str, Any]]:
    """Return checked copies of the results; the caller's own entries are never written to.

    Args:
        results: a json file or its contents: a list of ``{"image_id", "category_id", "score", "bbox": [x, y, w, h],
            "segmentation": compressed RLE}``; which of the last two are needed follows from ``iou_types``.

    Raises:
        FileNotFoundError, ValueError: naming the file and the entry.
    """
    name = "results"
    if isinstance(results, (str, Path)):
        name = str(results)
        results = read_json(Path(results), "evaluate_results")
    if not isinstance(results, (list, tuple)):
        raise ValueError(
            f"evaluate_results: {name} must be a list of detections, got {type(results).__name__}"
        )
    return [_checked(entry, f"{name}[{index}]", truth, iou_types) for index, entry in enumerate(results)]


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
