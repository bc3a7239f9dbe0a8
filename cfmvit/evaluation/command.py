"""``cfmvit evaluate``."""

from __future__ import annotations

from pathlib import Path

from cfmvit.evaluation.detection import Metrics, evaluate_results
from cfmvit.evaluation.ground_truth import IouType
from cfmvit.evaluation.tables import format_table


def evaluate(*, results: Path, annotations: Path, masks: bool = False) -> Metrics:
    """Print the AP table of a results file, and return the metrics."""
    iou_types: tuple[IouType, ...] = ("bbox", "segm") if masks else ("bbox",)
    metrics = evaluate_results(results, annotations, iou_types=iou_types)
    print(format_table(metrics))
    return metrics
