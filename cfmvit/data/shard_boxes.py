"""Shards of photographs with one box each, as a detection data set."""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cfmvit._require import require
from cfmvit.data.boxes import log_dropped
from cfmvit.data.categories import Category, shard_categories
from cfmvit.data.entries import DetectionEntry
from cfmvit.data.images import CorruptSample, log_corrupt
from cfmvit.data.shards import ShardSample, index_shards


def shard_entries(
    shards: tuple[Path, ...], categories_path: Path
) -> tuple[list[DetectionEntry], list[Category]]:
    """Return the samples with their one annotation, and the categories. Samples without a usable box are dropped.

    Raises:
        FileNotFoundError, ValueError: no categories, or a sample of an unknown one.
    """
    categories = shard_categories(categories_path)
    known = {category.id for category in categories}
    entries: list[DetectionEntry] = []
    dropped: list[str] = []
    for number, sample in enumerate(index_shards(shards, "json"), start=1):
        try:
            label = sample.json()
        except CorruptSample as error:
            log_corrupt(error)
            continue
        if not isinstance(label.get("category_id"), int) or label["category_id"] not in known:
            raise ValueError(
                f"data: {sample.name}.json must have a category_id of {categories_path}, got {label.get('category_id')!r}"
            )
        box = xywh(label.get("box_xyxy"))
        if box is None:
            dropped.append(sample.key)
            continue
        annotation = {"id": number, "image_id": number, "category_id": label["category_id"], "bbox": box}
        entries.append(DetectionEntry(number, sample, [annotation]))
    log_dropped(dropped, shards[0].parent)
    return entries, categories


def xywh(box: Any) -> list[float] | None:
    """Return x, y, width, height of x1, y1, x2, y2, or None where that is no box."""
    try:
        x1, y1, x2, y2 = (float(value) for value in box)
    except (TypeError, ValueError):
        return None
    # Also false for NaN and infinite corners.
    return [x1, y1, x2 - x1, y2 - y1] if 0 <= x1 < x2 < 1e6 and 0 <= y1 < y2 < 1e6 else None


def shard_annotations(entries: list[DetectionEntry], categories: list[Category]) -> Path:
    """Write the ground truth of shards as a COCO file, in a temporary folder that is removed at exit.

    Corrupt images are logged and left out, as they are in training.
    """
    pil = require("PIL.Image", extra="models")
    images, annotations = [], []
    for entry in entries:
        assert isinstance(entry.source, ShardSample)
        try:
            with pil.open(io.BytesIO(entry.source.read("image"))) as image:
                width, height = image.size
        except (OSError, CorruptSample) as error:
            log_corrupt(CorruptSample(entry.key, str(error)))
            continue
        images.append({"id": entry.image_id, "file_name": entry.key, "width": width, "height": height})
        for a in entry.annotations:
            annotations.append({**a, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0})
    folder = Path(tempfile.mkdtemp(prefix="cfmvit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names = [{"id": category.id, "name": category.name, "novel": category.novel} for category in categories]
    content = {"images": images, "annotations": annotations, "categories": names}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "annotations.json"
