"""LVIS style (federated) accumulation by the ``lvis`` package."""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable
from types import ModuleType
from typing import Any

import numpy as np

from cfmvit._require import require
from cfmvit.evaluation.average_precision import AREAS, Precision
from cfmvit.evaluation.ground_truth import GroundTruth, IouType


def accumulate_lvis(
    truth: GroundTruth,
    annotations: list[dict[str, Any]],
    results: list[dict[str, Any]],
    iou_type: IouType,
    categories: Collection[int],
) -> Precision:
    """Run LVISEval, one category at a time.

    The protocol never lets categories meet, so that the numbers are those of one run over all of them. That run
    would visit every (image, category, size) triple, most of them empty: tens of GB on the validation set.

    Args:
        annotations: those of the truth, with ids from 1.
        results: entries with ``area``, ``bbox`` or ``segmentation``, and ids from 1, already capped per image.
        categories: the ids that take part.
    """
    package = _import_lvis()
    category_ids = sorted(categories)
    boxes, found = _by_category(annotations), _by_category(results)
    params = package.eval.Params(iou_type)
    shape = (len(params.iou_thrs), len(params.rec_thrs), len(category_ids), len(AREAS))
    precision, recall = -np.ones(shape), -np.ones((shape[0], *shape[2:]))
    for index, category in enumerate(category_ids):
        if not boxes[category]:
            continue
        seen = {entry["image_id"] for entry in boxes[category] + found[category]}
        head = {
            "images": [truth.images[image] for image in sorted(seen)],
            "categories": [truth.categories[category]],
        }
        evaluator = package.eval.LVISEval(
            _indexed(package.LVIS, {**head, "annotations": boxes[category]}),
            _indexed(package.LVISResults, {**head, "annotations": found[category]}),
            iou_type,
        )
        evaluator.evaluate()
        evaluator.accumulate()
        precision[:, :, index] = evaluator.eval["precision"][:, :, 0]
        recall[:, index] = evaluator.eval["recall"][:, 0]
    return Precision(category_ids, np.asarray(params.iou_thrs), precision, recall)


def _by_category(entries: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry["category_id"]].append(entry)
    return groups


def _indexed(cls: Any, dataset: dict[str, Any]) -> Any:
    """Make an LVIS or LVISResults of data in memory; their constructors copy everything, and fail on empty results."""
    item = cls.__new__(cls)
    item.logger = logging.getLogger("lvis")
    item.dataset = dataset
    item._create_index()
    return item


class _Numpy(ModuleType):
    """numpy as the lvis package knew it: ``np.float`` is Python's float."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _import_lvis() -> ModuleType:
    if "lvis" not in sys.modules:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            _import_without_window_library()
        finally:
            # The package calls logging.basicConfig when imported; the application's logging is not its business.
            root.handlers[:] = handlers
            root.setLevel(level)
    package = sys.modules["lvis"]
    # The last release (0.5.3) says np.float, which numpy 2 no longer has. Only that module sees the old name.
    package.eval.np = _Numpy("numpy")
    return package


def _import_without_window_library() -> None:
    """Import lvis, without its plotting half where OpenCV cannot load (no libGL in most containers)."""
    try:
        require("lvis", extra="detection")
    except ImportError as error:
        if getattr(error.__cause__, "name", None) == "lvis":
            raise
        for name in [name for name in sys.modules if name.startswith("lvis.")]:
            del sys.modules[
                name
            ]  # what the failed import left; kept, it would not become part of the package again
        placeholder = ModuleType("lvis.vis")
        placeholder.LVISVis = None  # type: ignore[attr-defined]
        sys.modules["lvis.vis"] = placeholder
        try:
            require("lvis", extra="detection")
        finally:
            del sys.modules["lvis.vis"]
