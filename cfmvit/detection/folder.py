"""Find objects in many pictures: overlays, and one COCO results file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cfmvit._io import atomic_write
from cfmvit.data.images import CorruptSample, log_corrupt
from cfmvit.detection.detector import Detector, Precision
from cfmvit.detection.explanation import write_maps
from cfmvit.detection.image_input import Prepared, prepare, read_image
from cfmvit.detection.places import OVERLAY
from cfmvit.detection.result import Detections
from cfmvit.detection.vocabulary import Vocabulary
from cfmvit.progress import progress
from cfmvit.report import overlay
from cfmvit.report.images import PNG_LEVEL

RESULTS, IMAGES = "results.json", "images.json"


@dataclass
class Folder:
    """What was found in many pictures.

    Attributes:
        images: COCO's ``images``: ids from 1, and paths as they were given.
        results: COCO results.
        hidden: detections that were not chosen.
        skipped: pictures that can't be read.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    hidden: int = 0
    skipped: int = 0


def detect_folder(
    detector: Detector,
    files: Sequence[Path],
    text: Vocabulary,
    output: Path,
    choose: Callable[[Detections], Detections],
    *,
    explain: bool = False,
    precision: Precision = "auto",
    batch_size: int = 8,
) -> Folder:
    """Look for labels in pictures, and write into ``output``.

    ``results.json`` are COCO results, ``images.json`` says which picture and which category an id stands for, in COCO's form
    without annotations; beside them an overlay of each picture, ``NAME.detected.png``. Pictures that can't be read are
    logged and counted.

    Args:
        choose: which detections of a picture are kept.
        explain: add the parts of each score to the results, and the maps of ``write_maps`` to the overlays.

    Raises:
        ValueError: none of the pictures can be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    found, base = Folder(), set(detector.config.base_labels)
    whole = {path: Path(os.path.abspath(path)) for path in files}
    root = os.path.commonpath([path.parent for path in whole.values()])
    ids = range(1, len(text.labels) + 1)
    bar = progress(len(files), desc="detect")
    try:
        for batch in _batches(detector, files, batch_size, found):
            pictures = [picture for _, picture, _ in batch]
            everything = detector.predict(
                [p for *_, p in batch],
                text,
                threshold=0.0,
                explain=explain,
                precision=precision,
                batch_size=batch_size,
            )
            for (path, _, _), picture, detections in zip(batch, pictures, everything):
                chosen, number = choose(detections), len(found.images) + 1
                height, width = picture.shape[-2:]
                found.images.append({"id": number, "file_name": str(path), "height": height, "width": width})
                found.results += chosen.to_coco(number, ids)
                found.hidden += len(detections) - len(chosen)
                drawn = overlay(picture, chosen, {label for label in chosen.labels if label not in base})
                target = output / whole[path].relative_to(root).with_name(f"{path.name}{OVERLAY}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(target) as file:
                    drawn.save(file, format="PNG", compress_level=PNG_LEVEL)
                if explain:
                    write_maps(detector, picture, text, target)
            bar.update(min(batch_size, len(files) - bar.n))
    finally:
        bar.close()
    if not found.images:
        raise ValueError(f"detect: none of the {len(files)} pictures can be read; the log says why")
    categories = [{"id": number, "name": name} for number, name in zip(ids, text.labels)]
    for name, content in (
        (RESULTS, found.results),
        (IMAGES, {"images": found.images, "annotations": [], "categories": categories}),
    ):
        with atomic_write(output / name, "w") as file:
            json.dump(content, file)
    return found


def _batches(
    detector: Detector, files: Sequence[Path], size: int, found: Folder
) -> Iterator[list[tuple[Path, torch.Tensor, Prepared]]]:
    """Yield the pictures that can be read, ``size`` files at a time."""
    for start in range(0, len(files), size):
        batch = []
        for path in files[start : start + size]:
            try:
                picture = read_image(path)
            except (CorruptSample, FileNotFoundError) as error:
                log_corrupt(
                    error if isinstance(error, CorruptSample) else CorruptSample(str(path), "it is missing")
                )
                found.skipped += 1
                continue
            batch.append((path, picture, prepare(picture, detector.config.image_size)))
        if batch:
            yield batch
