"""Detection AP as the field's own tools compute it, with base and novel categories apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cfmvit.evaluation.average_precision import Precision
from cfmvit.evaluation.columns import CATEGORY, IMAGE, SCORE, Columns
from cfmvit.evaluation.engine import COCO_LIMIT, LVIS_LIMIT, Rows, accumulate, calibration, match
from cfmvit.evaluation.ground_truth import GroundTruth, IouType, load_ground_truth
from cfmvit.evaluation.oracles import accumulate_slowly
from cfmvit.evaluation.results import highest, load_results, with_area

Metrics = dict[str, dict[str, float]]
Engine = Literal["hotcoco", "pycocotools", "lvis"]

FIXED_DETECTIONS_PER_CATEGORY = 10_000
FREQUENCIES = ("r", "c", "f")


@dataclass
class Evaluation:
    """What an evaluation came to.

    Attributes:
        metrics: the figures, as ``evaluate_results`` returns them.
        groups: category ids by the suffix that the group's figures have; "" is all that take part.
        precision: the curves, by kind of overlap.
        boxes, detections: how many each category has, by id.
        calibration: by suffix of a group: the mean score, the share that is right at IoU 0.5 and how many detections there
            are, of ten equal bins of the scores; where it was asked for.
    """

    truth: GroundTruth
    metrics: Metrics
    groups: Mapping[str, Collection[int]]
    precision: dict[IouType, Precision]
    boxes: dict[int, int]
    detections: dict[int, int]
    calibration: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)


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
    engine: Engine = "hotcoco",
) -> Metrics:
    """Compute AP of detection results, COCO or LVIS style.

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
        engine: what matches and counts; the two slow ones, each for its style, have the same figures.

    Returns:
        ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR@n", ...}}``: with LVIS style also ``APr``, ``APc``,
        ``APf`` and ``AP50r``, ``AP50c``, ``AP50f``; with a split ``AP_base``, ``AP_novel``, ``AP50_base``,
        ``AP50_novel``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: malformed json, unknown image or category, NaN in a score or box; the message names the entry.
    """
    _check_options(style, iou_types, engine)
    truth = load_ground_truth(Path(annotations), style, iou_types)
    return evaluate_detections(
        results,
        truth,
        iou_types=iou_types,
        base_ids=base_ids,
        novel_ids=novel_ids,
        fixed=fixed,
        per_category=per_category,
        engine=engine,
    ).metrics


def evaluate_detections(
    results: str | Path | Sequence[dict[str, Any]],
    truth: GroundTruth,
    *,
    iou_types: Sequence[IouType],
    base_ids: Collection[int] | None = None,
    novel_ids: Collection[int] | None = None,
    fixed: bool = False,
    per_category: bool = False,
    engine: Engine = "hotcoco",
    with_calibration: bool = False,
) -> Evaluation:
    """Do what ``evaluate_results`` does, and return the curves too.

    Args:
        with_calibration: find how often scores come true, by the first of ``iou_types``; by hotcoco, and where they lie in [0, 1].
    """
    check_style(truth.style, fixed=fixed, engine=engine)
    groups = _groups(truth, base_ids, novel_ids)
    categories = _categories(truth, base_ids, novel_ids)
    found = load_results(results, truth, iou_types)
    boxes, detections = _counts(truth, truth.annotations), _counts(truth, found.columns)
    done = Evaluation(truth, {}, {"": categories, **groups}, {}, boxes, detections)
    scores = found.columns.rows[:, SCORE]
    with_calibration &= (
        engine == "hotcoco" and len(scores) > 0 and bool(scores.min() >= 0 and scores.max() <= 1)
    )

    def curves(rows: Rows, iou_type: IouType) -> Precision:
        if truth.style == "lvis":
            rows = with_area(found, rows, iou_type)
        if engine != "hotcoco":
            return accumulate_slowly(truth, found, rows, iou_type, categories)
        return accumulate(match(truth, found, rows, iou_type, categories), truth)

    for number, iou_type in enumerate(iou_types):
        rows, kept, limit = None, None, COCO_LIMIT
        if truth.style == "lvis":
            rows, limit = (
                highest(found.columns.rows, IMAGE, LVIS_LIMIT),
                LVIS_LIMIT,
            )
        if fixed:
            kept = highest(found.columns.rows, CATEGORY, FIXED_DETECTIONS_PER_CATEGORY)
        precision = curves(rows, iou_type)
        if with_calibration and not number:
            parts = {suffix: ids for suffix in ("", "_base", "_novel") if (ids := done.groups.get(suffix))}
            bins = calibration(truth, found, rows, iou_type, list(parts.values()))
            done.calibration = dict(zip(parts, bins))
        done.precision[iou_type] = precision
        done.metrics[iou_type] = {**_summary(precision, groups), f"AR@{limit}": precision.ar()}
        if fixed:
            uncapped = precision if rows is None and kept is None else curves(kept, iou_type)
            done.metrics[iou_type] |= {
                name.replace("AP", "APFixed", 1): value for name, value in _summary(uncapped, groups).items()
            }
        if per_category:
            done.metrics[f"{iou_type} AP50 by category"] = {
                truth.categories[category]["name"]: value
                for category, value in precision.ap_by_category(iou=0.5).items()
            }
    return done


def _counts(truth: GroundTruth, columns: Columns) -> dict[int, int]:
    ids = truth.known.category_ids
    counts = np.bincount(columns.rows[:, CATEGORY].astype(np.int64), minlength=len(ids))
    return dict(zip(ids.tolist(), counts.tolist()))


def check_style(style: str, *, fixed: bool, engine: Engine) -> None:
    """Raise ``ValueError`` unless options fit a ground truth's style."""
    if fixed and style != "lvis":
        raise ValueError("evaluate_results: fixed must be False with COCO style, got True")
    if engine != "hotcoco" and (engine == "lvis") != (style == "lvis"):
        fits = "lvis" if style == "lvis" else "pycocotools"
        raise ValueError(
            f"evaluate_results: engine must be hotcoco or {fits} with {style.upper()} style, got {engine!r}"
        )


def _check_options(style: str, iou_types: Sequence[str], engine: str) -> None:
    if engine not in get_args(Engine):
        raise ValueError(
            f"evaluate_results: engine must be one of {', '.join(get_args(Engine))}, got {engine!r}"
        )
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
