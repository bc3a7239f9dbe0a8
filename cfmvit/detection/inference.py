"""Run a detector over a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cfmvit
from cfmvit.data import CorruptSample
from cfmvit.data.fingerprint import fingerprint
from cfmvit.data.images import log_corrupt
from cfmvit.data.remarks import Remarks
from cfmvit.detection.detector import Detector, Precision
from cfmvit.detection.image_input import Prepared
from cfmvit.detection.partial_results import PartialResults
from cfmvit.models.checkpoint import hash_weights
from cfmvit.progress import progress
from cfmvit.training.precision import choose_precision


def predict_dataset(
    detector: Detector,
    dataset: Any,
    output: Path,
    *,
    batch_size: int = 8,
    threshold: float | None = None,
    masks: bool = True,
    precision: Precision = "auto",
    overwrite: bool = False,
) -> Path:
    """Detect every category of a data set in each of its images; corrupt images are logged and get no detections.

    Categories on which the detector was not finetuned are weighed as novel; all of them where the data set says that all are, as
    for transfer to another one.
    Results are written as they come: where an earlier call was broken off, this one begins with the first image without any.

    Args:
        dataset: from ``cfmvit.data.open_detection``, not augmented, at the detector's image size.
        masks: predict masks too.
        precision: as ``Detector.encode`` takes it.
        output: folder in which ``results.json`` (COCO results, which pycocotools and lvis accept) is written, whole
            or not at all; until then what there is lies in ``results.partial.jsonl``.
        overwrite: begin anew where that is of another detector, other data or options.

    Returns:
        the path of ``results.json``.

    Raises:
        ValueError: the folder holds unfinished results of another run.
        RuntimeError: another process is predicting into the folder.
    """
    names = [category.name for category in dataset.categories]
    ids = [category.id for category in dataset.categories]
    text = detector.vocabulary(names)
    novel = text.labels if all(category.novel for category in dataset.categories) else None
    precision = choose_precision(precision, detector.device)
    settings = _settings(detector, dataset, threshold, masks, precision)
    written = PartialResults(output, settings, overwrite=overwrite)
    remarks = Remarks()
    bar = progress(len(dataset), desc="predict", initial=written.done)
    try:
        for start in range(written.done, len(dataset), batch_size):
            samples = [_load(dataset, index) for index in range(start, min(start + batch_size, len(dataset)))]
            there = [sample for sample in samples if sample is not None]
            for sample in there:
                remarks.note(sample["key"], sample["remarks"])
            images = [Prepared(s["image"], tuple(s["original_size"]), tuple(s["valid_size"])) for s in there]
            options: dict[str, Any] = {
                "threshold": threshold,
                "masks": masks,
                "novel": novel,
                "precision": precision,
            }
            found = iter(detector.predict(images, text, **options))
            for loaded in samples:
                written.add([] if loaded is None else next(found).to_coco(loaded["image_id"], ids))
            bar.update(len(samples))
        path = written.finish()
    finally:
        bar.close()
        written.close()
    if remarks:
        print(f"predict: {len(remarks)} images were odd in size or orientation; the log says which and how")
    return path


def _settings(
    detector: Detector, dataset: Any, threshold: float | None, masks: bool, precision: str
) -> dict[str, str]:
    """Return what results depend on. Not how many images are predicted together, nor where: both may change on the way."""
    names = fingerprint((category.id, category.name) for category in dataset.categories)
    return {
        "cfmvit": cfmvit.__version__,
        "detector": f"sha256 {hash_weights(detector)[:16]}",
        "configuration": repr(detector.config),
        "data": f"{dataset.summary}; {dataset.fingerprint()}; {dataset.reading}",
        "categories": names,
        "threshold": str(threshold),
        "masks": str(masks),
        "precision": precision,
    }


def _load(dataset: Any, index: int) -> dict[str, Any] | None:
    try:
        return dataset.load_image(index)
    except CorruptSample as error:
        log_corrupt(error)
        return None
