"""Ground truth small enough to compute AP by hand, and detections made of real ground truth and noise."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils


def write(path: Path, data: Any) -> Path:
    """Write json and return the path."""
    path.write_text(json.dumps(data))
    return path


def read(path: Path) -> Any:
    """Parse json."""
    return json.loads(path.read_text())


def detections_from(
    data: dict[str, Any], *, seed: int, masks: bool = False, extra: int = 20
) -> list[dict[str, Any]]:
    """Detections of an annotation file: jittered boxes, some in the wrong category, some out of nothing.

    Args:
        masks: add the annotation's own mask, moved by the jitter's offset, as compressed RLE.
        extra: detections out of nothing for each image.
    """
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    categories = [category["id"] for category in data["categories"]]
    present = sorted({annotation["category_id"] for annotation in data["annotations"]})
    found = []
    for annotation in data["annotations"]:
        if rng.random() < 0.15:
            continue
        x, y, width, height = annotation["bbox"]
        noise = rng.normal(0, 0.08, 4)
        wrong = rng.random() < 0.2
        found.append(
            {
                "image_id": annotation["image_id"],
                "category_id": int(rng.choice(present)) if wrong else annotation["category_id"],
                "score": round(float(rng.random()), 2),
                "bbox": [
                    x + width * noise[0],
                    y + height * noise[1],
                    width * float(np.exp(noise[2])),
                    height * float(np.exp(noise[3])),
                ],
            }
        )
        if masks:
            found[-1]["segmentation"] = _shifted_mask(annotation, sizes[annotation["image_id"]], noise)
    for image, (height, width) in sizes.items():
        for _ in range(extra):
            x, y = rng.uniform(0, width * 0.8), rng.uniform(0, height * 0.8)
            box = [x, y, rng.uniform(2, width - x), rng.uniform(2, height - y)]
            category = int(rng.choice(categories if rng.random() < 0.5 else present))
            found.append(
                {"image_id": image, "category_id": category, "score": float(rng.random()) * 0.6, "bbox": box}
            )
            if masks:
                found[-1]["segmentation"] = box_rle(box, (height, width))
    return found


def box_rle(box: list[float], size: tuple[int, int]) -> dict[str, Any]:
    """A filled box as compressed RLE."""
    grid = np.zeros(size, dtype=np.uint8, order="F")
    x, y, width, height = (round(value) for value in box)
    grid[max(0, y) : y + height, max(0, x) : x + width] = 1
    return _text(mask_utils.encode(grid))


def _shifted_mask(annotation: dict[str, Any], size: tuple[int, int], noise: np.ndarray) -> dict[str, Any]:
    height, width = size
    shape = annotation["segmentation"]
    if isinstance(shape, list):
        code = mask_utils.merge(mask_utils.frPyObjects(shape, height, width))
    else:
        code = mask_utils.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    offset = (round(noise[1] * annotation["bbox"][3]), round(noise[0] * annotation["bbox"][2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' __array__ without copy=, numpy 2
        grid = mask_utils.decode(code)
    return _text(mask_utils.encode(np.asfortranarray(np.roll(grid, offset, axis=(0, 1)))))


def _text(code: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
