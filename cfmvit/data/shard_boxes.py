"""Shards of photographs with boxes, as a detection data set."""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cfmvit.data.boxes import Usable, log_dropped
from cfmvit.data.categories import Category, CategorySplit, shard_categories
from cfmvit.data.entries import DetectionEntry, Found
from cfmvit.data.images import CorruptSample, Orientation, decode_frame, log_corrupt, log_corrupt_count
from cfmvit.data.shards import BrokenShards, ShardSample, open_shards, parsed_json
from cfmvit.data.specs import CATEGORIES
from cfmvit.data.storage import beside

_LOG = logging.getLogger(__name__)


def shard_entries(names: tuple[str, ...], broken: BrokenShards, max_skipped: int) -> Found:
    """Return the samples with their annotations, and the categories. Samples without a usable box are dropped.

    A sample's json has a ``category_id`` and a ``box_xyxy``, or two lists of as many.

    Raises:
        FileNotFoundError, ValueError: no categories, or a sample of an unknown one.
    """
    categories_place = beside(names[0], CATEGORIES)
    categories = shard_categories(categories_place)
    known = {category.id for category in categories}
    entries: list[DetectionEntry] = []
    dropped: list[str] = []
    corrupt = boxes = unlabelled = 0
    shards = open_shards(names, "detection", broken, max_skipped)
    for number in range(1, len(shards) + 1):
        try:
            sample, files = shards.read(number - 1, "json")
            if "json" not in files:
                unlabelled += 1
                continue
            label = parsed_json(sample, files["json"])
        except CorruptSample as error:
            log_corrupt(error)
            corrupt += 1
            continue
        annotations = []
        for category, corners in _pairs(label):
            if not isinstance(category, int) or category not in known:
                raise ValueError(
                    f"data: {sample.name}.json must have a category_id of {categories_place}, got {category!r}"
                )
            box = xywh(corners)
            if box is None:
                dropped.append(sample.key)
                continue
            boxes += 1
            annotations.append({"id": boxes, "image_id": number, "category_id": category, "bbox": box})
        if annotations:
            entries.append(DetectionEntry(number, sample, annotations))
    if unlabelled:
        _LOG.warning("left out %d of %d samples, which have no .json", unlabelled, len(shards))
    log_corrupt_count(corrupt, len(shards))
    log_dropped(dropped, Path(names[0]).parent, "their box is not finite or has no area")
    split = CategorySplit(categories, (), "as categories.json says")
    return Found(entries, split, Usable(dropped=len(dropped) + corrupt))


def _pairs(label: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return category and corners of each box of a sample."""
    categories, boxes = label.get("category_id"), label.get("box_xyxy")
    if isinstance(categories, list) and isinstance(boxes, list) and len(boxes) == len(categories):
        return list(zip(categories, boxes))
    return [(categories, boxes)]


def xywh(box: Any) -> list[float] | None:
    """Return x, y, width, height of x1, y1, x2, y2, or None where that is no box."""
    try:
        x1, y1, x2, y2 = (float(value) for value in box)
    except (TypeError, ValueError):
        return None
    # Also false for NaN and infinite corners.
    return [x1, y1, x2 - x1, y2 - y1] if 0 <= x1 < x2 < 1e6 and 0 <= y1 < y2 < 1e6 else None


def shard_annotations(
    entries: list[DetectionEntry], categories: list[Category], orientation: Orientation
) -> Path:
    """Write the ground truth of shards as a COCO file, in a temporary folder that is removed at exit.

    Corrupt images are logged and left out, as they are in training; images are oriented as there.
    """
    images, annotations = [], []
    for entry in entries:
        assert isinstance(entry.source, ShardSample)
        try:
            # Decoded wholly: an image whose header alone is sound gets no detections, so it must not count.
            height, width = decode_frame(entry.source.read("image"), entry.key, None, orientation)[0].shape[
                :2
            ]
        except CorruptSample as error:
            log_corrupt(error)
            continue
        images.append({"id": entry.image_id, "file_name": entry.key, "width": width, "height": height})
        for a in entry.annotations:
            annotations.append({**a, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0})
    log_corrupt_count(len(entries) - len(images), len(entries))
    folder = Path(tempfile.mkdtemp(prefix="cfmvit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names = [{"id": category.id, "name": category.name, "novel": category.novel} for category in categories]
    content = {"images": images, "annotations": annotations, "categories": names}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "annotations.json"
