"""Annotation files in COCO or LVIS format, read and checked once."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cfmvit._io import parse_json
from cfmvit.data.masks import within_reach
from cfmvit.data.rle import check_rle
from cfmvit.evaluation.columns import Columns, Known, native_reader, read_columns

Style = Literal["coco", "lvis"]
IouType = Literal["bbox", "segm"]
_LISTS = ("images", "annotations", "categories")


@dataclass
class GroundTruth:
    """Images and categories by id, and the annotations as columns."""

    path: Path
    style: Style
    images: dict[int, dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    known: Known
    annotations: Columns = field(init=False)


def read_json(path: Path, caller: str) -> Any:
    """Parse a json file, or say which file is missing or malformed and where."""
    if not path.is_file():
        raise FileNotFoundError(f"{caller}: {path} does not exist")
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{caller}: {path} is not valid json: {error}") from error


def load_ground_truth(
    path: Path, style: Literal["auto", "coco", "lvis"], iou_types: Sequence[str]
) -> GroundTruth:
    """Read an annotation file for evaluation.

    Args:
        path: json with ``images``, ``annotations`` and ``categories``.
        style: ``"auto"`` takes LVIS where images name ``neg_category_ids`` or categories a ``frequency``.
        iou_types: with ``"segm"`` every annotation must have a segmentation.

    Raises:
        FileNotFoundError, ValueError: naming the file and the entry.
        ImportError: the native reader is not built.
    """
    if not path.is_file():
        raise FileNotFoundError(f"evaluate_results: {path} does not exist")
    content = path.read_bytes()
    spans = native_reader().json_members(content) or {}
    if not spans:
        read_json(path, "evaluate_results")  # says what is wrong with it
    for key in _LISTS:
        if key not in spans or content[spans[key][0]] != ord("["):
            raise ValueError(
                f"evaluate_results: {path} must hold a list named {key!r}, as COCO and LVIS files do"
            )
    parts = {key: content[start : start + length] for key, (start, length) in spans.items() if key in _LISTS}
    first = spans["annotations"][0]
    del content
    images, categories = (_by_id(json.loads(parts[key]), path, key) for key in ("images", "categories"))
    style = _detect_style(images, categories) if style == "auto" else style
    truth = GroundTruth(path, style, images, categories, Known.of(images, categories))
    if truth.style == "lvis":
        _check_federated(truth)
    masks = "segm" in iou_types
    if masks:
        for image in truth.images.values():
            if "height" not in image or "width" not in image:
                raise ValueError(f"evaluate_results: {path}: image {image['id']} has no height and width")

    def put_right(columns: Columns, number: int, entry: Any) -> None:
        _check_annotation(entry, f"{path}: annotations[{number}]", truth, iou_types)
        columns.rows[number] = [
            np.searchsorted(truth.known.image_ids, entry["image_id"]),
            *entry["bbox"],
            entry["area"],
            np.searchsorted(truth.known.category_ids, entry["category_id"]),
        ]
        columns.crowd[number] = entry.get("iscrowd", 0)
        if masks and not columns.mask_spans[number, 1]:
            raise ValueError(f"evaluate_results: {path}: annotations[{number}]: keys must not be escaped")

    truth.annotations = read_columns(
        parts["annotations"], truth.known, truth=True, boxes=True, masks=masks, put_right=put_right
    )
    truth.annotations.mask_spans[:, 0] += first
    return truth


def check_box(box: Any, where: str) -> None:
    """Raise unless ``box`` is x, y, width, height: four finite numbers, the last two not negative."""
    finite = (
        isinstance(box, (list, tuple, np.ndarray))
        and len(box) == 4
        and all(_is_number(value) for value in box)
    )
    if not finite or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"evaluate_results: {where}: bbox must be [x, y, width, height], finite and not negative in size, got {box}"
        )


def _is_number(value: Any) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    # Not math.isfinite, which fails on integers beyond every float.
    return number and bool(abs(value) <= sys.float_info.max)


def check_score(score: Any, where: str) -> None:
    """Raise unless ``score`` is a finite number."""
    if not _is_number(score):
        raise ValueError(f"evaluate_results: {where}: score must be a finite number, got {score}")


def is_known(key: Any, known: Container[int]) -> bool:
    """Whether ``key`` is an integer, and an id of ``known``."""
    return isinstance(key, Integral) and not isinstance(key, bool) and key in known


def _detect_style(images: dict[int, dict[str, Any]], categories: dict[int, dict[str, Any]]) -> Style:
    federated = any("neg_category_ids" in image for image in images.values())
    return "lvis" if federated or any("frequency" in entry for entry in categories.values()) else "coco"


def _by_id(entries: list[Any], path: Path, key: str) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            raise ValueError(f"evaluate_results: {path}: {key}[{index}] has no id")
        if not isinstance(entry["id"], int) or not -(2**63) <= entry["id"] < 2**63:
            raise ValueError(
                f"evaluate_results: {path}: {key}[{index}] must have an integer id, of 64 bits, got {entry['id']!r}"
            )
        for side in ("width", "height"):
            if side in entry and not (isinstance(entry[side], int) and 0 < entry[side] < 2**31):
                raise ValueError(
                    f"evaluate_results: {path}: {key}[{index}] must have a positive integer {side}, got {entry[side]!r}"
                )
        if entry["id"] in found:
            raise ValueError(f"evaluate_results: {path}: {key} has the id {entry['id']} twice")
        found[entry["id"]] = entry
    return found


def _check_federated(truth: GroundTruth) -> None:
    for image in truth.images.values():
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if not isinstance(image.get(key), list):
                raise ValueError(
                    f"evaluate_results: {truth.path}: image {image['id']} has no {key}, which style 'lvis' needs"
                )
            if not all(isinstance(category, int) for category in image[key]):
                raise ValueError(
                    f"evaluate_results: {truth.path}: {key} of image {image['id']} must be integers, got {image[key]}"
                )
    for category in truth.categories.values():
        if category.get("frequency") not in ("r", "c", "f"):
            raise ValueError(
                f"evaluate_results: {truth.path}: the frequency of category {category['id']} must be r, c or f, "
                f"got {category.get('frequency')!r}"
            )


def _check_annotation(annotation: Any, where: str, truth: GroundTruth, iou_types: Sequence[str]) -> None:
    needed = ["image_id", "category_id", "bbox", "area"] + ["segmentation"] * ("segm" in iou_types)
    for key in needed:
        if not isinstance(annotation, dict) or key not in annotation:
            raise ValueError(f"evaluate_results: {where} has no {key}")
    for key, known in (("image_id", truth.images), ("category_id", truth.categories)):
        if not is_known(annotation[key], known):
            raise ValueError(
                f"evaluate_results: {where} refers to {key} {annotation[key]}, which the file does not list"
            )
    check_box(annotation["bbox"], where)
    if not _is_number(annotation["area"]) or annotation["area"] < 0:
        raise ValueError(
            f"evaluate_results: {where}: area must be a finite number and not negative, got {annotation['area']!r}"
        )
    crowd = annotation.get("iscrowd", 0)
    if not isinstance(crowd, Integral) or crowd not in (0, 1):
        raise ValueError(f"evaluate_results: {where}: iscrowd must be 0 or 1, got {crowd!r}")
    if truth.style == "lvis" and annotation.get("ignore", 0) not in (0, None):
        raise ValueError(
            f"evaluate_results: {where}: ignore must be 0 in LVIS style, got {annotation['ignore']!r}; LVIS's own files have none"
        )
    if "segm" in iou_types:
        _check_segmentation(annotation["segmentation"], where, truth.images[annotation["image_id"]])


def _check_segmentation(segmentation: Any, where: str, image: dict[str, Any]) -> None:
    if isinstance(segmentation, dict):
        check_rle(segmentation, f"evaluate_results: {where}", image["height"], image["width"])
    elif not (isinstance(segmentation, list) and segmentation and all(map(_is_polygon, segmentation))):
        raise ValueError(
            f"evaluate_results: {where}: segmentation must be an RLE or a list of polygons, each [x1, y1, x2, y2, ...] "
            f"of coordinates below 1e6, got {str(segmentation)[:40]!r}"
        )


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 4 and len(points) % 2 == 0 and within_reach(points)
