"""The report of an evaluation: figures, precision over recall, calibration, and every category."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

import cfmvit
from cfmvit.evaluation.detection import Evaluation
from cfmvit.evaluation.ground_truth import IouType
from cfmvit.report import Card, Report, precision_recall, reliability

_GROUPS = {"": "all", "_base": "base", "_novel": "novel", "r": "rare", "c": "common", "f": "frequent"}
_KINDS = {"bbox": "boxes", "segm": "masks"}


def write_page(done: Evaluation, path: Path, *, results: str, split: str = "") -> Path:
    """Write an HTML report and return its path.

    Args:
        results: what was evaluated, in words.
        split: how base and novel categories were told apart, in words.
    """
    truth, boxes, found = done.truth, sum(done.boxes.values()), sum(done.detections.values())
    report = Report(
        "Detection, evaluated",
        f"`{results}` against `{truth.path}`, by the rules of {truth.style.upper()}.{f' {split}.' if split else ''}",
        [
            f"cfmvit {cfmvit.__version__}",
            f"{len(truth.images)} images",
            f"{boxes} boxes of {sum(count > 0 for count in done.boxes.values())} categories",
            f"{found} detections",
        ],
    )
    report.cards(_cards(done))
    report.section(
        "Average precision", "Means over categories that have boxes, x 100; a dash where none has."
    )
    report.table(
        {_KINDS[kind]: done.metrics[kind] for kind in done.precision},
        best=False,
        highlight=[name for name in done.metrics[next(iter(done.precision))] if name.endswith("novel")],
    )
    charts = [_precision_recall(done, kind) for kind in done.precision]
    if any(charts):
        report.section(
            "Precision over recall",
            "At an IoU of 0.5: the best precision at each recall or a higher one, the mean over the categories of a group. "
            "Objects that no detection matches count as precision 0.",
        )
        report.svg(*(chart for chart in charts if chart))
    if done.calibration:
        report.section(
            "How often a score comes true",
            "Detections in ten bins of their score, and the share of each bin that matches a box at an IoU of 0.5. On the dashed "
            "line a score is a probability; the ensemble's product of powers need not be one, and average precision does not ask "
            "for it.",
        )
        named = {_GROUPS[suffix]: bins for suffix, bins in done.calibration.items()}
        if any(count for bins in named.values() for _, _, count in bins):
            report.svg(reliability(named))
        report.facts(
            {f"expected calibration error, {name}": _percent(_error(bins)) for name, bins in named.items()}
        )
    report.section("Categories", "Novel ones first, then by falling AP.")
    columns, novel = _categories(done)
    report.table(columns, best=False, highlight=novel, tall=True)
    return report.write(path)


def _cards(done: Evaluation) -> list[Card]:
    cards = []
    for kind, figures in done.metrics.items():
        if kind in done.precision:
            shown = ("AP", "AP50_novel", "AP50_base") if "AP50_novel" in figures else ("AP", "AP50", "AP75")
            for name in shown:
                title = f"{name.replace('_', ' ')}, {_KINDS[kind]}"
                cards.append(Card(_percent(figures[name]), title, novel=name.endswith("novel")))
    return cards


def _precision_recall(done: Evaluation, kind: IouType) -> Markup | None:
    curves: dict[str, list[float]] = {}
    drawn: list[set[int]] = []
    for suffix, members in done.groups.items():
        if set(members) not in drawn:  # LVIS's rare ones are its novel ones
            drawn.append(set(members))
            curves[_GROUPS[suffix]] = done.precision[kind].curve(0.5, members)
    if not any(math.isfinite(value) for values in curves.values() for value in values):
        return None
    return precision_recall(curves, title=_KINDS[kind])


def _categories(done: Evaluation) -> tuple[Mapping[str, dict[str, object]], list[str]]:
    novel = set(done.groups.get("_novel", ()))
    first = next(iter(done.precision))
    by_kind = {
        (kind, title): precision.ap_by_category(iou)
        for kind, precision in done.precision.items()
        for title, iou in (("AP", None), ("AP50", 0.5))
    }
    order = sorted(
        done.groups[""], key=lambda key: (key not in novel, -by_kind[first, "AP"].get(key, -1.0), key)
    )
    names = _names(done, order)
    columns: dict[str, dict[str, object]] = {
        "boxes": {names[key]: done.boxes[key] for key in order},
        "detections": {names[key]: done.detections[key] for key in order},
    }
    for (kind, title), figures in by_kind.items():
        heading = title if len(done.precision) == 1 else f"{title}, {_KINDS[kind]}"
        columns[heading] = {names[key]: figures.get(key, math.nan) for key in order}
    return columns, [names[key] for key in order if key in novel]


def _names(done: Evaluation, keys: list[int]) -> dict[int, str]:
    names = {key: str(done.truth.categories[key].get("name", key)).replace("_", " ") for key in keys}
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    return {key: f"{name} ({key})" if name in twice else name for key, name in names.items()}


def _error(bins: list[tuple[float, float, int]]) -> float:
    total = sum(count for _, _, count in bins)
    return sum(count * abs(score - right) for score, right, count in bins) / total if total else math.nan


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"
