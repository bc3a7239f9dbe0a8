"""Detection AP as the field's own tools compute it, with base and novel categories apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cfmvit._require import require
from cfmvit.evaluation.average_precision import Precision
from cfmvit.evaluation.coco import accumulate_coco
from cfmvit.evaluation.ground_truth import GroundTruth, IouType, load_ground_truth
from cfmvit.evaluation.lvis import accumulate_lvis, cap_per_category, cap_per_image
from cfmvit.evaluation.results import load_results

Metrics = dict[str, dict[str, float]]

LVIS_DETECTIONS_PER_IMAGE = 300
FIXED_DETECTIONS_PER_CATEGORY = 10_000
FREQUENCIES = ("r", "c", "f")


def evaluate_results(
    results: str | Path | Sequence[dict[str, Any]],
    annotations: str | Path,
    *,
    style: Literal["auto", "lvis", "coco"] = "auto",
    iou_types: Sequence[IouType] = ("bbox",),
    base_ids: Collection[int] | None = None,
    novel_ids: Collection[int] | None = None,
    fixed: bool = False,
    per_category: bool = False,
) -> Metrics:
    """Compute AP of detection results, by pycocotools (COCO style) or lvis (LVIS style).

    Every image of the annotations counts, also those without detections. All figures are fractions; NaN stands where
    no category of a group has ground truth.

    Args:
        results: a COCO results json, or its contents (xywh boxes, compressed RLE masks). Never written to.
        annotations: a COCO or LVIS annotation file.
        style: ``"auto"`` takes LVIS where the file is federated or names frequencies.
        iou_types: ``"bbox"``, ``"segm"`` or both. Sizes of masks go by mask area, also where results have boxes too.
        base_ids, novel_ids: category ids. Given, the evaluation is over these alone, as in the COCO open-vocabulary
            protocol (48 base and 17 novel of 80). LVIS style without them: rare is novel, all else is base.
        fixed: LVIS style only: add ``APFixed...``, over the 10,000 best detections of each category and no cap
            per image.
        per_category: add an entry ``"<iou type> AP50 by category"`` with a figure per category name.

    Returns:
        ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR@n", ...}}``: with LVIS style also ``APr``, ``APc``,
        ``APf`` and ``AP50r``, ``AP50c``, ``AP50f``; with a split ``AP_base``, ``AP_novel``, ``AP50_base``,
        ``AP50_novel``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: malformed json, unknown image or category, NaN in a score or box; the message names the entry.
    """
    _check_options(style, iou_types)
    truth = load_ground_truth(Path(annotations), style, iou_types)
    if fixed and truth.style != "lvis":
        raise ValueError("evaluate_results: fixed must be False with COCO style, got True")
    found = load_results(results, truth, iou_types)
    groups = _groups(truth, base_ids, novel_ids)
    categories = _categories(truth, base_ids, novel_ids)
    metrics: Metrics = {}
    for iou_type in iou_types:
        entries = _prepared(found, iou_type)
        if truth.style == "coco":
            precision = accumulate_coco(truth, entries, iou_type, categories)
            limit = 100
        else:
            capped = cap_per_image(entries, LVIS_DETECTIONS_PER_IMAGE)
            precision = accumulate_lvis(truth, capped, iou_type, categories)
            limit = LVIS_DETECTIONS_PER_IMAGE
        metrics[iou_type] = {**_summary(precision, groups), f"AR@{limit}": precision.ar()}
        if fixed:
            capped = cap_per_category(entries, FIXED_DETECTIONS_PER_CATEGORY)
            precision = accumulate_lvis(truth, capped, iou_type, categories)
            summary = _summary(precision, groups)
            metrics[iou_type] |= {name.replace("AP", "APFixed", 1): value for name, value in summary.items()}
        if per_category:
            metrics[f"{iou_type} AP50 by category"] = {
                truth.categories[category]["name"]: value
                for category, value in precision.ap_by_category(iou=0.5).items()
            }
    return metrics


def _check_options(style: str, iou_types: Sequence[str]) -> None:
    if style not in ("auto", "lvis", "coco"):
        raise ValueError(f"evaluate_results: style must be auto, lvis or coco, got {style!r}")
    if isinstance(iou_types, str) or not iou_types or not set(iou_types) <= {"bbox", "segm"}:
        raise ValueError(
            f"evaluate_results: iou_types must be a sequence of bbox and segm, got {iou_types!r}"
        )


def _categories(
    truth: GroundTruth, base_ids: Collection[int] | None, novel_ids: Collection[int] | None
) -> Collection[int]:
    """The categories that take part: those of the split where one is given."""
    if base_ids is None and novel_ids is None:
        return truth.categories
    chosen = {*(base_ids or ()), *(novel_ids or ())}
    unknown = sorted(chosen - truth.categories.keys())
    if unknown:
        raise ValueError(
            f"evaluate_results: base_ids and novel_ids must be ids in {truth.path}, got {unknown}"
        )
    twice = sorted(set(base_ids or ()) & set(novel_ids or ()))
    if twice:
        raise ValueError(f"evaluate_results: base_ids and novel_ids must not overlap, got {twice} in both")
    return chosen


def _groups(
    truth: GroundTruth, base_ids: Collection[int] | None, novel_ids: Collection[int] | None
) -> Mapping[str, Collection[int]]:
    """Category ids by the suffix that their figures get."""
    groups: dict[str, Collection[int]] = {}
    if truth.style == "lvis":
        for letter in FREQUENCIES:
            groups[letter] = [key for key, entry in truth.categories.items() if entry["frequency"] == letter]
        if base_ids is None and novel_ids is None:
            base_ids, novel_ids = [*groups["c"], *groups["f"]], groups["r"]
    if base_ids is not None:
        groups["_base"] = base_ids
    if novel_ids is not None:
        groups["_novel"] = novel_ids
    return groups


def _summary(precision: Precision, groups: Mapping[str, Collection[int]]) -> dict[str, float]:
    summary = {"AP": precision.ap(), "AP50": precision.ap(iou=0.5), "AP75": precision.ap(iou=0.75)}
    for area in ("small", "medium", "large"):
        summary[f"AP{area[0]}"] = precision.ap(area=area)
    for suffix, members in groups.items():
        summary[f"AP{suffix}"] = precision.ap(categories=members)
        summary[f"AP50{suffix}"] = precision.ap(iou=0.5, categories=members)
    return summary


def _prepared(found: list[dict[str, Any]], iou_type: IouType) -> list[dict[str, Any]]:
    """Copies with what the tools expect: ``area`` and ids from 1."""
    mask = require("pycocotools.mask", extra="detection")
    entries = []
    for index, entry in enumerate(found):
        if iou_type == "bbox":
            geometry: dict[str, Any]
            if "bbox" in entry:
                geometry = {"bbox": entry["bbox"], "area": entry["bbox"][2] * entry["bbox"][3]}
            else:  # as both tools do it: the box of the mask, of the mask's size
                rle = entry["segmentation"]
                geometry = {"bbox": mask.toBbox(rle).tolist(), "area": float(mask.area(rle))}
        else:
            # Both tools would take the box's area where a result has both, and so sort masks by another size.
            rle = entry["segmentation"]
            geometry = {"segmentation": rle, "area": float(mask.area(rle))}
        entries.append(
            {
                "id": index + 1,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "score": entry["score"],
                "iscrowd": 0,
                **geometry,
            }
        )
    return entries
