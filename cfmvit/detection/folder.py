"""Find objects in many pictures: overlays, and one COCO results file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from cfmvit.report.images import PNG

RESULTS, IMAGES = "results.json", "images.json"
_THREADS = min(4, os.cpu_count() or 1)  # that read and draw: 0.2 GB each where photographs have 12 megapixels
_Read = tuple[Path, torch.Tensor, Prepared]


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

    The next batch is read while one is predicted, and the last one is written: three batches of pictures are held.

    Args:
        choose: which detections of a picture, as yet without masks, are kept.
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

    def look(images: list[Prepared]) -> list[Detections]:
        encoded = detector.encode(images, precision=precision)
        everything = detector.predict(encoded, text, threshold=0.0, masks=False, explain=explain)
        chosen = [choose(detections) for detections in everything]
        detector.add_masks(encoded, chosen)
        found.hidden += sum(map(len, everything)) - sum(map(len, chosen))
        return chosen

    def finish(number: int, path: Path, picture: torch.Tensor, chosen: Detections) -> list[dict[str, Any]]:
        drawn = overlay(picture, chosen, {label for label in chosen.labels if label not in base})
        with atomic_write(target(path)) as file:
            drawn.save(file, format="PNG", **PNG)
        return chosen.to_coco(number, ids)

    def target(path: Path) -> Path:
        return output / whole[path].relative_to(root).with_name(f"{path.name}{OVERLAY}")

    with ThreadPoolExecutor(_THREADS) as pool:
        writing: list[Future[list[dict[str, Any]]]] = []
        try:
            for batch in _batches(pool, detector, files, batch_size, found):
                chosen = look([prepared for *_, prepared in batch])
                _gather(writing, found)
                for (path, picture, _), detections in zip(batch, chosen):
                    number, (height, width) = len(found.images) + 1, picture.shape[-2:]
                    found.images.append(
                        {"id": number, "file_name": str(path), "height": height, "width": width}
                    )
                    writing.append(pool.submit(finish, number, path, picture, detections))
                    if explain:
                        write_maps(detector, picture, text, target(path))
                bar.update(min(batch_size, len(files) - bar.n))
            _gather(writing, found)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # files that are begun are finished, no others
            raise
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


def _gather(writing: list[Future[list[dict[str, Any]]]], found: Folder) -> None:
    """Wait until a batch is written, and add its results."""
    for each in writing:
        found.results += each.result()
    writing.clear()


def _batches(
    pool: ThreadPoolExecutor, detector: Detector, files: Sequence[Path], size: int, found: Folder
) -> Iterator[list[_Read]]:
    """Yield the pictures that can be read, ``size`` files at a time, while the next ones are read."""

    def read(path: Path) -> _Read | CorruptSample:
        try:
            picture = read_image(path)
        except CorruptSample as error:
            return error
        except FileNotFoundError:
            return CorruptSample(str(path), "it is missing")
        return path, picture, prepare(picture, detector.config.image_size)

    ahead = [pool.submit(read, path) for path in files[:size]]
    for start in range(size, len(files) + size, size):
        results, batch = [each.result() for each in ahead], []
        ahead = [pool.submit(read, path) for path in files[start : start + size]]
        for one in results:
            if isinstance(one, CorruptSample):
                log_corrupt(one)
                found.skipped += 1
            else:
                batch.append(one)
        if batch:
            yield batch
