"""The detector in the form of a transformers pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cfmvit.detection.detector import Detector, Precision
from cfmvit.training.device import choose_device

_TASK = "zero-shot-object-detection"
Found = list[dict[str, Any]]


class ZeroShotObjectDetectionPipeline:
    """Calls a detector as transformers' pipeline of the same name is called.

    Args:
        detector: whose images and labels these are.
        precision: as ``Detector.encode`` takes it.
    """

    task = _TASK

    def __init__(self, detector: Detector, precision: Precision = "auto") -> None:
        self.model, self._precision = detector, precision

    def __call__(
        self,
        image: Any,
        candidate_labels: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        threshold: float = 0.1,
        top_k: int | None = None,
    ) -> Found | list[Found] | Iterator[Found]:
        """Find labels in an image.

        Args:
            image: as ``Detector.predict`` takes one, or ``{"image", "candidate_labels"}``; or a list or an iterator of those.
            candidate_labels: names, in a list or parted by commas; for a list of images also a list of such lists.
            threshold: scores must exceed it.
            top_k: at most so many, those of the highest score.

        Returns:
            ``[{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}]`` by falling score, boxes in whole pixels; a list
            of those for a list, an iterator for an iterator.

        Raises:
            ValueError: no image or no labels, or lists of labels for another number of images; and all that
                ``Detector.predict`` raises.
        """
        if isinstance(image, Iterator):
            return (self._one(item, candidate_labels, threshold, top_k) for item in image)
        if isinstance(image, (list, tuple)):
            labels = _for_each(candidate_labels, len(image))
            return [self._one(item, words, threshold, top_k) for item, words in zip(image, labels)]
        return self._one(image, candidate_labels, threshold, top_k)

    def _one(self, image: Any, labels: Any, threshold: float, top_k: int | None) -> Found:
        if isinstance(image, dict):
            if "image" not in image:
                raise ValueError(f"{_TASK}: a dict must have an image, got {', '.join(image) or 'nothing'}")
            image, labels = image["image"], image.get("candidate_labels", labels)
        if labels is None:
            raise ValueError(f"{_TASK}: candidate_labels must be given, got None")
        names = [name.strip() for name in labels.split(",")] if isinstance(labels, str) else list(labels)
        detections = self.model.predict(
            image, names, threshold=threshold, max_detections=top_k, masks=False, precision=self._precision
        )
        found = detections.to_list()
        for item, number in zip(found, detections.label_ids.tolist()):
            item["label"] = names[number]  # as it was given
            item["box"] = {corner: int(value) for corner, value in item["box"].items()}
        return found


def _for_each(labels: Any, count: int) -> Sequence[Any]:
    """Return the labels of each of several images."""
    if not isinstance(labels, (list, tuple)) or all(isinstance(label, str) for label in labels):
        return [labels] * count
    if len(labels) != count:
        raise ValueError(
            f"{_TASK}: candidate_labels must be names, or a list of names for each of {count} images, got {len(labels)} lists"
        )
    return labels


def pipeline(
    task: str = _TASK,
    model: str | os.PathLike[str] | Detector | None = None,
    *,
    device: str = "auto",
    precision: Precision = "auto",
) -> ZeroShotObjectDetectionPipeline:
    """Return a pipeline that is called as transformers' of the same task.

    Args:
        task: "zero-shot-object-detection".
        model: a detector or its folder; by default the small one that is shipped.
        device: ``cpu``, ``cuda[:N]``, or ``auto``: a GPU where there is one.
        precision: as ``Detector.encode`` takes it.

    Raises:
        ValueError: another task; and all that ``Detector.from_pretrained`` raises.
    """
    if task != _TASK:
        raise ValueError(f"pipeline: task must be {_TASK!r}, got {task!r}")
    if not isinstance(model, Detector):
        model = Detector.from_pretrained(None if model is None else Path(model))
    return ZeroShotObjectDetectionPipeline(model.to(choose_device(device)).eval(), precision)
