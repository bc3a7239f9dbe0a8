"""The images of a detection data set, with their annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfmvit.data.annotations import by_image, image_paths, read_json
from cfmvit.data.boxes import Usable, usable
from cfmvit.data.categories import CategorySplit, VocabularyRule, split_categories
from cfmvit.data.shards import ShardSample


@dataclass(frozen=True)
class DetectionEntry:
    """One image: its id, its file or shard sample, and its annotations as COCO writes them.

    Attributes:
        size: (height, width) of the frame that the annotations are in, where the file says it.
    """

    image_id: int
    source: Path | ShardSample
    annotations: list[dict[str, Any]]
    size: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """Path of the image, for messages."""
        return self.source.name if isinstance(self.source, ShardSample) else str(self.source)


@dataclass(frozen=True)
class Found:
    """What a file or shards hold that can be used."""

    entries: list[DetectionEntry]
    split: CategorySplit
    usable: Usable


def file_entries(path: Path, folder: Path, vocabulary: VocabularyRule) -> Found:
    """Return the images of a COCO or LVIS file, with the annotations that can be used, and the categories.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or malformed.
    """
    content = read_json(
        path,
        optional=("annotations",),
        images=("id",),
        annotations=("id", "image_id", "category_id", "bbox"),
        categories=("id", "name"),
    )
    files = image_paths(content["images"], folder, path)
    grouped = by_image(content["annotations"], files, path)
    known = {category["id"] for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    found = usable(grouped, images, known, path)
    entries = [
        DetectionEntry(number, file, found.kept.get(number, []), _size(images[number]))
        for number, file in files.items()
    ]
    return Found(entries, split_categories(content["categories"], path, vocabulary), found)


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    return (image["height"], image["width"]) if "height" in image and "width" in image else None
