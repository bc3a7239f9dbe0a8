"""``cfmvit evaluate``."""

from __future__ import annotations

import json
import math
from pathlib import Path

from cfmvit._io import atomic_write
from cfmvit._terminal import printable
from cfmvit.data.categories import VocabularyRule
from cfmvit.evaluation.detection import Engine, Metrics, evaluate_detections
from cfmvit.evaluation.ground_truth import IouType, load_ground_truth
from cfmvit.evaluation.splits import open_vocabulary_split
from cfmvit.evaluation.tables import format_table


def evaluate(
    *,
    results: Path,
    annotations: Path,
    masks: bool = False,
    vocabulary: VocabularyRule = "auto",
    per_category: bool = False,
    fixed: bool = False,
    engine: Engine = "hotcoco",
    output: Path | None = None,
    folder: Path | None = None,
) -> Metrics:
    """Print the AP table of a results file, and return its figures.

    Base and novel categories are told apart by the rule of training, and the line above the table says how; others are left
    out. With ``vocabulary`` "all" every category counts alike: the plain COCO figures.

    Args:
        results: a COCO results json.
        annotations: its ground truth, in COCO or LVIS format.
        masks: evaluate masks too.
        vocabulary: see ``cfmvit.data.open_detection``.
        per_category, fixed, engine: see ``evaluate_results``.
        output: a json file for the figures; null stands where one is not defined.
        folder: where to write the same figures as ``metrics.json``, and ``report.html``: precision over recall by group, every
            category, calibration.

    Raises:
        FileNotFoundError, ValueError: all that ``evaluate_results`` raises.
    """
    iou_types: tuple[IouType, ...] = ("bbox", "segm") if masks else ("bbox",)
    truth = load_ground_truth(annotations, "auto", iou_types)
    categories = {"categories": list(truth.categories.values())}
    split = open_vocabulary_split(categories, annotations, vocabulary)
    base_ids = novel_ids = None
    if split is not None:
        base_ids = [category.id for category in split.categories if not category.novel]
        novel_ids = [category.id for category in split.categories if category.novel]
        print(f"open vocabulary: {split}")
    done = evaluate_detections(
        results,
        truth,
        iou_types=iou_types,
        per_category=per_category,
        fixed=fixed,
        base_ids=base_ids,
        novel_ids=novel_ids,
        engine=engine,
        with_calibration=folder is not None,
    )
    metrics = done.metrics
    # Before the tables, whose reader may leave.
    for path in filter(None, (output, folder and folder / "metrics.json")):
        _write_json(path, metrics)
    page = None
    if folder is not None:
        from cfmvit.evaluation.page import write_page

        words = "" if split is None else f"Open vocabulary: {split}"
        page = write_page(done, folder / "report.html", results=str(results), split=words)
    shown: dict[str, dict[str, float]] = {
        kind: values for kind, values in metrics.items() if kind in iou_types
    }
    print(format_table(shown))
    for kind, values in metrics.items():
        if kind not in iou_types:
            print(format_table({kind: {printable(name): value for name, value in values.items()}}))
    if page is not None:
        print(f"report: {printable(str(page))}")
    return metrics


def _write_json(path: Path, metrics: Metrics) -> None:
    plain = {
        kind: {name: value if math.isfinite(value) else None for name, value in values.items()}
        for kind, values in metrics.items()
    }
    with atomic_write(path, "w") as file:
        json.dump(plain, file, indent=2, allow_nan=False)
