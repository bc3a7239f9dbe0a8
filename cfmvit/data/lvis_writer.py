"""Writing made images with their captions and boxes: the layout and the formats of LVIS and COCO."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require


@dataclass
class Annotation:
    """One object: ``box`` is x, y, width, height; ``area`` and ``segmentation`` as COCO has them."""

    category_id: int
    box: tuple[float, float, float, float]
    area: float
    segmentation: Any


@dataclass
class Picture:
    """One made image: its number in the split, the encoded file, a caption, and its objects."""

    index: int
    jpeg: bytes
    caption: str
    objects: list[Annotation] = field(default_factory=list)

    @property
    def file_name(self) -> str:
        """Name of the file in the folder of its split."""
        return f"{self.index + 1:08d}.jpg"


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Return a JPEG file without chroma subsampling, which would blur small coloured details."""
    file = io.BytesIO()
    require("PIL.Image", extra="models").fromarray(pixels).save(
        file, format="JPEG", quality=quality, subsampling=0
    )
    return file.getvalue()


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's compressed RLE of a mask (H, W)."""
    codec = require("pycocotools.mask", extra="detection")
    packed = codec.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": packed["counts"].decode("ascii")}


def write_images(folder: Path, pictures: Iterable[Picture]) -> list[Picture]:
    """Write the files as they come, and return the pictures without their bytes."""
    folder.mkdir()
    kept = []
    for picture in pictures:
        (folder / picture.file_name).write_bytes(picture.jpeg)
        kept.append(replace(picture, jpeg=b""))
    return kept


def write_captions(path: Path, folder: str, pictures: Sequence[Picture], size: int) -> None:
    """Write the captions as a COCO file; the images lie in ``folder`` and are ``size`` pixels wide and high."""
    texts = [{"id": p.index + 1, "image_id": p.index + 1, "caption": p.caption} for p in pictures]
    _write(path, {"images": [_image(folder, p, size) for p in pictures], "annotations": texts})


def frequencies(
    categories: Sequence[Any], pictures: Sequence[Picture], thresholds: tuple[int, int]
) -> dict[int, str]:
    """Return each category's frequency by its number of training images, as LVIS has it.

    Args:
        categories: with ``id`` and ``novel``; novel ones are rare (r) by construction.
        thresholds: most images of a rare category, and of a common one.
    """
    count = _image_count(pictures)
    return {c.id: "r" if c.novel else "c" if count[c.id] <= thresholds[1] else "f" for c in categories}


def rare_threshold(slots: int, categories: int) -> int:
    """Most training images of a rare category: LVIS's 10, scaled down where there are few objects per category."""
    return min(10, max(1, slots // (4 * categories)))


def write_lvis(
    path: Path,
    folder: str,
    pictures: Sequence[Picture],
    size: int,
    categories: Sequence[dict[str, Any]],
    *,
    unannotated: set[int],
) -> None:
    """Write the boxes as an LVIS file.

    What was made is wholly known, so every absent category is a verified negative: a wrong label costs precision in every
    image, not in the few that LVIS's annotators happened to check.

    Args:
        categories: entries of the file; the counts are added here.
        unannotated: ids of categories whose boxes are left out, as in LVIS's "norare" files.
    """
    everything = {category["id"] for category in categories}
    image_count = _image_count(pictures)
    instance_count = Counter(item.category_id for picture in pictures for item in picture.objects)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        present = {item.category_id for item in picture.objects}
        images.append(
            {
                **_image(folder, picture, size),
                "neg_category_ids": sorted(everything - present),
                "not_exhaustive_category_ids": sorted(present & unannotated),
            }
        )
        for item in picture.objects:
            if item.category_id not in unannotated:
                annotations.append(_entry(len(annotations) + 1, picture.index + 1, item))
    counted = [
        {**c, "image_count": image_count[c["id"]], "instance_count": instance_count[c["id"]]}
        for c in categories
    ]
    _write(path, {"images": images, "annotations": annotations, "categories": counted})


def _image_count(pictures: Sequence[Picture]) -> Counter[int]:
    return Counter(number for p in pictures for number in {item.category_id for item in p.objects})


def _image(folder: str, picture: Picture, size: int) -> dict[str, Any]:
    return {
        "id": picture.index + 1,
        "file_name": picture.file_name,
        "coco_url": f"http://cfmvit.invalid/{folder}/{picture.file_name}",
        "width": size,
        "height": size,
    }


def _entry(number: int, image_id: int, item: Annotation) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": item.category_id,
        "bbox": list(item.box),
        "area": item.area,
        "segmentation": item.segmentation,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
