"""Run a detector over a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cfmvit._io import atomic_write
from cfmvit.data import CorruptSample
from cfmvit.data.images import log_corrupt
from cfmvit.data.remarks import Remarks
from cfmvit.detection.detector import Detector
from cfmvit.detection.image_input import Prepared
from cfmvit.progress import progress


def predict_dataset(
    detector: Detector,
    dataset: Any,
    output: Path,
    *,
    batch_size: int = 8,
    threshold: float | None = None,
    masks: bool = True,
) -> Path:
    """Detect every category of a data set in each of its images; corrupt images are logged and get no detections.

    Categories on which the detector was not finetuned are weighed as novel, in another data set than its own all of them.

    Args:
        dataset: from ``cfmvit.data.open_detection``, not augmented, at the detector's image size.
        masks: predict masks too.
        output: folder in which ``results.json`` (COCO results, which pycocotools and lvis accept) is written, whole
            or not at all.

    Returns:
        the path of ``results.json``.
    """
    names = [category.name for category in dataset.categories]
    ids = [category.id for category in dataset.categories]
    text = detector.vocabulary(names)
    results: list[dict[str, Any]] = []
    remarks = Remarks()
    bar = progress(len(dataset), desc="predict")
    try:
        for start in range(0, len(dataset), batch_size):
            indices = range(start, min(start + batch_size, len(dataset)))
            samples = [
                sample for sample in (_load(dataset, index) for index in indices) if sample is not None
            ]
            for sample in samples:
                remarks.note(sample["key"], sample["remarks"])
            images = [
                Prepared(s["image"], tuple(s["original_size"]), tuple(s["valid_size"])) for s in samples
            ]
            found = detector.predict_batch(images, text, threshold=threshold, masks=masks)
            for sample, detections in zip(samples, found):
                results += detections.to_coco(sample["image_id"], ids)
            bar.update(len(indices))
    finally:
        bar.close()
    if remarks:
        print(f"predict: {len(remarks)} images were odd in size or orientation; the log says which and how")
    path = output / "results.json"
    with atomic_write(path, "w") as file:
        json.dump(results, file)
    return path


def _load(dataset: Any, index: int) -> dict[str, Any] | None:
    try:
        return dataset.load_image(index)
    except CorruptSample as error:
        log_corrupt(error)
        return None
