"""Precision by threshold, recall, category and object size: what both tools accumulate, and the means over it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

AREAS = ("all", "small", "medium", "large")


@dataclass
class Precision:
    """Accumulated curves of T IoU thresholds, R recall levels, K categories and the 4 sizes of ``AREAS``.

    ``precision`` (T, R, K, 4) and ``recall`` (T, K, 4) are -1 where a category has no ground truth.
    """

    category_ids: list[int]
    iou_thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    def ap(
        self, *, iou: float | None = None, area: str = "all", categories: Collection[int] | None = None
    ) -> float:
        """Average precision, or NaN where no chosen category has ground truth.

        Args:
            iou: one threshold; all ten by default.
            categories: the category ids to average over; all by default.
        """
        values = self.precision[..., AREAS.index(area)]
        if iou is not None:
            values = values[np.isclose(self.iou_thresholds, iou)]
        if categories is not None:
            values = values[:, :, np.isin(self.category_ids, list(categories))]
        return _mean(values)

    def ar(self) -> float:
        """Average recall over thresholds and categories, or NaN without ground truth."""
        return _mean(self.recall[..., 0])

    def curve(self, iou: float, categories: Collection[int]) -> list[float]:
        """Precision at each recall level, the mean over categories that have ground truth; NaN without any."""
        values = self.precision[np.isclose(self.iou_thresholds, iou)][..., 0]
        values = values[:, :, np.isin(self.category_ids, list(categories))].mean(axis=0)
        known = values[:, (values > -1).all(axis=0)]
        return known.mean(axis=1).tolist() if known.size else [math.nan] * len(values)

    def ap_by_category(self, iou: float | None = None) -> dict[int, float]:
        """AP of each category that has ground truth."""
        values = {category: self.ap(iou=iou, categories=[category]) for category in self.category_ids}
        return {category: value for category, value in values.items() if not math.isnan(value)}


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan
