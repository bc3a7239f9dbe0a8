"""``cfmvit evaluate``."""

from __future__ import annotations

from pathlib import Path

from cfmvit.evaluation.detection import Metrics, evaluate_results
from cfmvit.evaluation.ground_truth import IouType, read_json
from cfmvit.evaluation.splits import open_vocabulary_split
from cfmvit.evaluation.tables import format_table


def evaluate(*, results: Path, annotations: Path, masks: bool = False) -> Metrics:
    """Print the AP table of a results file, and return its figures.

    COCO's own categories are evaluated by the open-vocabulary protocol, over 48 base and 17 novel ones, those of shards
    by what their ``categories.json`` calls novel, and the line above the table says so; ``evaluate_results`` without ids
    gives the plain figures.

    Args:
        results: a COCO results json.
        annotations: its ground truth, in COCO or LVIS format.
        masks: evaluate masks too.

    Raises:
        FileNotFoundError, ValueError: all that ``evaluate_results`` raises.
    """
    iou_types: tuple[IouType, ...] = ("bbox", "segm") if masks else ("bbox",)
    data = read_json(annotations, "evaluate_results")
    split = open_vocabulary_split(data.get("categories")) if isinstance(data, dict) else None
    base, novel = split or (None, None)
    metrics = evaluate_results(results, annotations, iou_types=iou_types, base_ids=base, novel_ids=novel)
    if split:
        print(
            f"open vocabulary: {len(split[0])} base and {len(split[1])} novel categories; others are left out"
        )
    print(format_table(metrics))
    return metrics
