"""Write detection data in LVIS format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfmvit._io import atomic_write
from cfmvit._require import require

_NEGATIVES = 8


@dataclass
class Annotation:
    """One object: ``box`` is x, y, width, height; ``mask`` bool (H, W), or ``None`` where only the box is known."""

    category_id: int
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_] | None


def lvis_json(
    images: list[dict[str, Any]],
    objects: list[list[Annotation]],
    categories: list[dict[str, Any]],
    *,
    thresholds: tuple[int, int],
    unannotated: set[int],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return the content of an LVIS file.

    Args:
        images: entries with id, file_name, coco_url, width, height.
        objects: the objects of each image.
        categories: entries with id, name, ... and ``novel``, which becomes the frequency ``r``.
        thresholds: most images of a rare category, and of a common one.
        unannotated: ids of categories whose boxes are left out, as in LVIS's "norare" files.
    """
    everything = np.array([category["id"] for category in categories])
    image_count = dict.fromkeys(everything.tolist(), 0)
    instance_count = dict(image_count)
    annotations: list[dict[str, Any]] = []
    entries = []
    for image, items in zip(images, objects):
        present = {item.category_id for item in items}
        for number in present:
            image_count[number] += 1
        for item in items:
            instance_count[item.category_id] += 1
            if item.category_id not in unannotated:
                annotations.append(_entry(len(annotations) + 1, image["id"], item))
        absent = everything[~np.isin(everything, list(present))]
        negative = rng.choice(absent, min(_NEGATIVES, len(absent)), replace=False)
        entries.append(
            {
                **image,
                "neg_category_ids": sorted(negative.tolist()),
                "not_exhaustive_category_ids": sorted(present & unannotated),
            }
        )
    counted = [
        {
            **{key: value for key, value in category.items() if key != "novel"},
            "frequency": _frequency(category["novel"], image_count[category["id"]], thresholds[1]),
            "image_count": image_count[category["id"]],
            "instance_count": instance_count[category["id"]],
        }
        for category in categories
    ]
    return {
        "info": {"description": f"rare: at most {thresholds[0]} images, common: at most {thresholds[1]}"},
        "images": entries,
        "annotations": annotations,
        "categories": counted,
    }


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, separators=(",", ":"))


def _frequency(novel: bool, images: int, common: int) -> str:
    return "r" if novel else "c" if images <= common else "f"


def _entry(number: int, image_id: int, item: Annotation) -> dict[str, Any]:
    x, y, width, height = item.box
    entry = {
        "id": number,
        "image_id": image_id,
        "category_id": item.category_id,
        "bbox": [x, y, width, height],
        "area": width * height,
    }
    if item.mask is None:
        return {**entry, "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]]}
    codec = require("pycocotools.mask", extra="detection")
    packed = codec.encode(np.asfortranarray(item.mask, np.uint8))
    rle = {"size": packed["size"], "counts": packed["counts"].decode("ascii")}
    return {**entry, "area": int(np.count_nonzero(item.mask)), "segmentation": rle}
