"""Run a detector over a data set, in one process or in several."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cfmvit
from cfmvit.data import CorruptSample
from cfmvit.data.fingerprint import fingerprint
from cfmvit.data.images import log_corrupt
from cfmvit.data.remarks import Remarks
from cfmvit.detection.detector import Detector, Precision
from cfmvit.detection.image_input import Prepared
from cfmvit.detection.partial_results import RESULTS, PartialResults
from cfmvit.models.checkpoint import hash_weights
from cfmvit.progress import progress
from cfmvit.training import World
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
    world: World | None = None,
) -> Path:
    """Detect every category of a data set in each of its images; corrupt images are logged and get no detections.

    Categories on which the detector was not finetuned are weighed as novel; all of them where the data set says that all are, as
    for transfer to another one.
    The next images are read beside the prediction. Results are written as they come: where an earlier call was broken off, this one begins with the first image without any.

    Several processes take turns, a batch each, and the main one writes what all have found, in the order of the images: the file
    is that of one process, and what was broken off may go on with another number of them.

    Args:
        dataset: from ``cfmvit.data.open_detection``, not augmented, at the detector's image size.
        masks: predict masks too.
        precision: as ``Detector.encode`` takes it.
        output: folder in which ``results.json`` (COCO results, which pycocotools and lvis accept) is written, whole
            or not at all; until then what there is lies in ``results.partial.jsonl``.
        overwrite: begin anew where that is of another detector, other data or options.
        world: the processes, each of which has the detector and the data; alone by default.

    Returns:
        the path of ``results.json``.

    Raises:
        ValueError: the folder holds unfinished results of another run.
        RuntimeError: another process is predicting into the folder, or one of these is missing.
    """
    world = world or World(detector.device)
    names = [category.name for category in dataset.categories]
    ids = [category.id for category in dataset.categories]
    text = detector.vocabulary(names)
    novel = text.labels if all(category.novel for category in dataset.categories) else None
    precision = choose_precision(precision, detector.device)
    options: dict[str, Any] = {
        "threshold": threshold,
        "masks": masks,
        "novel": novel,
        "precision": precision,
    }
    settings = _settings(detector, dataset, threshold, masks, precision)
    remarks = Remarks()

    def load(start: int) -> list[dict[str, Any] | None]:
        mine = range(len(dataset))[start + world.rank * batch_size :][:batch_size]
        return [_load(dataset, index) for index in mine]

    def look(samples: list[dict[str, Any] | None]) -> list[list[dict[str, Any]]]:
        there = [sample for sample in samples if sample is not None]
        for sample in there:
            remarks.note(sample["key"], sample["remarks"])
        images = [Prepared(s["image"], tuple(s["original_size"]), tuple(s["valid_size"])) for s in there]
        found = iter(detector.predict(images, text, **options))
        return [[] if one is None else next(found).to_coco(one["image_id"], ids) for one in samples]

    with ExitStack() as opened, world.reaching():
        written = None
        with world.together():
            if world.main:
                written = PartialResults(output, settings, overwrite=overwrite)
                opened.callback(written.close)
        done, count = world.from_main(lambda: written.done if written else 0), len(dataset)
        bar = progress(count, desc="predict", initial=done)
        opened.callback(bar.close)
        step = batch_size * world.size
        reader = opened.enter_context(ThreadPoolExecutor(1))
        ahead = reader.submit(load, done)
        for start in range(done, count, step):
            world.doing = f"image {start}"
            found: list[list[dict[str, Any]]] = []
            with world.together():
                samples = ahead.result()
                ahead = reader.submit(load, start + step)
                found = look(samples)
            in_order = [detections for part in world.gather(found) for detections in part]
            with world.together():
                if written:
                    for detections in in_order:
                        written.add(detections)
            bar.update(len(in_order))
        with world.together():
            if written:
                written.finish()
    odd = sum(world.gather(len(remarks)))
    if odd:
        print(f"predict: {odd} images were odd in size or orientation; the log says which and how")
    return output / RESULTS


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
