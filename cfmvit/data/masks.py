"""Masks from the segmentations of COCO and LVIS files."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require
from cfmvit.data.boxes import is_number


def decode_mask(annotation: dict[str, Any], height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8 (height, width) from polygons or RLE, or the box where there is no segmentation.

    Raises:
        ValueError: a segmentation that can't be read, or of another size.
    """
    codec = require("pycocotools.mask", extra="detection")
    found = annotation.get("segmentation")
    if isinstance(found, list):
        # Three points at least; pycocotools would take two for a box.
        found = [
            points
            for points in found
            if isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0
        ]
        if not all(map(within_reach, found)):
            raise ValueError(
                f"annotation {annotation['id']} has a polygon whose coordinates aren't below 1e6"
            )
    if not found:
        x, y, w, h = annotation["bbox"]
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        found = [[left, top, right, top, right, bottom, left, bottom]]
    try:
        # Before any decoding: what pycocotools allocates goes by the size.
        if isinstance(found, dict) and tuple(found["size"]) != (height, width):
            raise ValueError(f"its size is {found['size']}, the image's [{height}, {width}]")
        if isinstance(found, list):
            packed = codec.merge(codec.frPyObjects(found, height, width))
        elif isinstance(found["counts"], list):
            packed = codec.frPyObjects(found, *found["size"])
        else:
            packed = {"size": found["size"], "counts": str(found["counts"]).encode("ascii")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own __array__ under NumPy 2
            # A copy: the codec's array may outlive what it points to.
            mask = np.array(codec.decode(packed))
    except (TypeError, KeyError, IndexError, ValueError, OverflowError) as error:
        raise ValueError(f"annotation {annotation['id']} has a malformed segmentation: {error}") from error
    return mask


def within_reach(points: list[Any]) -> bool:
    """Whether all coordinates of a polygon are finite numbers below 1e6.

    pycocotools walks along each edge in steps of less than a pixel, so a far corner would take all memory.
    """
    return all(is_number(value) and abs(value) < 1e6 for value in points)
