"""The images of a detection data set, with their annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfmvit.data.annotations import by_image, image_paths, read_json
from cfmvit.data.boxes import usable
from cfmvit.data.categories import Category, file_categories
from cfmvit.data.shards import ShardSample


@dataclass(frozen=True)
class DetectionEntry:
    """One image: its id, its file or shard sample, and its annotations as COCO writes them."""

    image_id: int
    source: Path | ShardSample
    annotations: list[dict[str, Any]]

    @property
    def key(self) -> str:
        """Path of the image, for messages."""
        return self.source.name if isinstance(self.source, ShardSample) else str(self.source)


def file_entries(path: Path, folder: Path) -> tuple[list[DetectionEntry], list[Category]]:
    """Return the images of a COCO or LVIS file, with the annotations whose boxes can be used, and the categories.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or malformed.
    """
    content = read_json(
        path, images=("id",), annotations=("id", "image_id", "category_id", "bbox"), categories=("id", "name")
    )
    files = image_paths(content["images"], folder, path)
    grouped = by_image(content["annotations"], files, path)
    known = {category["id"] for category in content["categories"]}
    entries = usable(grouped, {image["id"]: image for image in content["images"]}, known, path)
    return (
        [DetectionEntry(number, file, entries.get(number, [])) for number, file in files.items()],
        file_categories(content["categories"], path),
    )
