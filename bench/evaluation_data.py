"""Made ground truth and results of the size of LVIS's and COCO's validation sets."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Size:
    """How large a data set is; federated ones are LVIS's."""

    images: int
    categories: int
    boxes: int
    detections: int  # of an image
    federated: bool

    def of(self, images: int) -> Size:
        """Return the size of as many images, with their share of the boxes."""
        return replace(self, images=images, boxes=round(images / self.images * self.boxes))


SIZES = {"lvis": Size(19_809, 1_203, 244_707, 300, True), "coco": Size(5_000, 80, 36_781, 100, False)}
_POLYGON = 42  # corners: LVIS's file has 785 bytes for a box


def make(folder: Path, size: Size, *, masks: bool, seed: int = 0) -> None:
    """Write ``truth.json`` and ``results.json``: made boxes, and detections of which some are near them.

    Args:
        masks: results have masks, rectangles as RLE, and no boxes: hotcoco takes the size of a box where there is one.
    """
    rng = np.random.default_rng(seed)
    sides = rng.integers(300, 641, (size.images, 2))
    # Few categories have most of the boxes, as everywhere.
    share = 1 / np.arange(1, size.categories + 1)
    image = np.sort(rng.integers(0, size.images, size.boxes))
    category = rng.permutation(size.categories)[
        rng.choice(size.categories, size.boxes, p=share / share.sum())
    ]
    boxes = _boxes(rng, sides[image])
    _write_truth(folder / "truth.json", size, rng, sides, image, category, boxes)
    first = np.searchsorted(image, np.arange(size.images + 1))
    with (folder / "results.json").open("w") as file:
        file.write("[")
        for place in range(size.images):
            own = np.arange(first[place], first[place + 1])
            near = rng.choice(own, min(size.detections // 2, 4 * len(own))) if len(own) else own
            found = np.concatenate(
                [
                    _near(rng, boxes[near]),
                    _boxes(rng, np.tile(sides[place], (size.detections - len(near), 1))),
                ]
            )
            names = np.concatenate(
                [category[near], rng.integers(0, size.categories, size.detections - len(near))]
            )
            scores = np.concatenate([rng.random(len(near)), 0.7 * rng.random(size.detections - len(near))])
            codes = _rectangles(found, sides[place]) if masks else None
            file.write(",\n" if place else "\n")
            file.write(_entries(place + 1, names + 1, scores, found, codes))
        file.write("\n]\n")


def _boxes(rng: np.random.Generator, sides: np.ndarray) -> np.ndarray:
    """Return (n, 4) xywh within frames of (n, 2) height and width; as many small ones as large ones."""
    extent = np.exp(rng.uniform(math.log(0.02), math.log(0.9), (len(sides), 2))) * sides[:, ::-1]
    corner = rng.random((len(sides), 2)) * (sides[:, ::-1] - extent)
    return np.concatenate([corner, extent], axis=1)


def _near(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    corner = np.abs(boxes[:, :2] + rng.normal(0, 0.1, (len(boxes), 2)) * boxes[:, 2:])
    return np.concatenate([corner, boxes[:, 2:] * np.exp(rng.normal(0, 0.15, (len(boxes), 2)))], axis=1)


def _entries(
    image: int, categories: np.ndarray, scores: np.ndarray, boxes: np.ndarray, codes: list[str] | None
) -> str:
    """Write numbers as they come from float32 tensors."""
    lines = []
    for place, (category, score, box) in enumerate(
        zip(categories.tolist(), scores.astype(np.float32).tolist(), boxes.astype(np.float32).tolist())
    ):
        shape = f'"bbox": {box}' if codes is None else f'"segmentation": {codes[place]}'
        lines.append(f'{{"image_id": {image}, "category_id": {category}, "score": {score!r}, {shape}}}')
    return ",\n".join(lines)


def _rectangles(boxes: np.ndarray, sides: np.ndarray) -> list[str]:
    from pycocotools import mask

    height, width = sides.tolist()
    codes = mask.frPyObjects(np.ascontiguousarray(boxes, dtype=np.float64), height, width)
    return [json.dumps({"size": [height, width], "counts": code["counts"].decode()}) for code in codes]


def _write_truth(
    path: Path,
    size: Size,
    rng: np.random.Generator,
    sides: np.ndarray,
    image: np.ndarray,
    category: np.ndarray,
    boxes: np.ndarray,
) -> None:
    angles = np.linspace(0, 2 * np.pi, _POLYGON, endpoint=False)
    circle = 0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    polygons = (boxes[:, None, :2] + circle * boxes[:, None, 2:]).reshape(len(boxes), -1).round(2)
    areas = boxes[:, 2] * boxes[:, 3] * np.pi / 4
    first = np.searchsorted(image, np.arange(size.images + 1))
    images: list[dict[str, Any]] = []
    for place, (height, width) in enumerate(sides.tolist()):
        images.append(
            {"id": place + 1, "height": height, "width": width, "file_name": f"{place + 1:012}.jpg"}
        )
        if size.federated:
            there = np.unique(category[first[place] : first[place + 1]]) + 1
            absent = np.setdiff1d(rng.integers(1, size.categories + 1, 12), there)
            images[-1] |= {
                "neg_category_ids": absent.tolist(),
                "not_exhaustive_category_ids": there[::9].tolist(),
            }
    names = [{"id": number + 1, "name": f"thing {number + 1}"} for number in range(size.categories)]
    if size.federated:
        for number, entry in enumerate(names):
            entry["frequency"] = "rcf"[number % 3]
    annotations = [
        {
            "id": n + 1,
            "image_id": i + 1,
            "category_id": c + 1,
            "bbox": b,
            "area": a,
            "segmentation": [p],
            "iscrowd": 0,
        }
        for n, (i, c, b, a, p) in enumerate(
            zip(image.tolist(), category.tolist(), boxes.round(2).tolist(), areas.tolist(), polygons.tolist())
        )
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
