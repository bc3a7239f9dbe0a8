"""Masks from the segmentations of COCO and LVIS files."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require
from cfmvit.data.annotations import is_number
from cfmvit.data.rle import check_rle


def has_mask(annotation: dict[str, Any]) -> bool:
    """Whether an annotation has a segmentation at all; a missing one, None and an empty list are none."""
    return annotation.get("segmentation") not in (None, [], {}, "")


def malformed(annotation: dict[str, Any], image: dict[str, Any]) -> str:
    """Say what is wrong with an annotation's segmentation, in words that follow "since"; empty where nothing is.

    Args:
        image: its entry in the file; RLEs are checked against its ``height`` and ``width`` where it has them.
    """
    found = annotation.get("segmentation")
    if not has_mask(annotation):
        return ""
    if isinstance(found, list):
        # Two points would be a box to pycocotools, and a flat list of numbers as many boxes.
        if not all(isinstance(points, list) and all(map(is_number, points)) for points in found):
            return "their segmentation is no list of polygons, each [x1, y1, x2, y2, ...]"
        if any(len(points) < 6 or len(points) % 2 for points in found):
            return "a polygon of theirs has fewer than three points, or an odd count of numbers"
        if not all(map(within_reach, found)):
            return "a polygon of theirs has coordinates of 1e6 or more"
        return ""
    if not isinstance(found, dict):
        return "their segmentation is neither polygons nor RLE"
    size = found.get("size")
    height, width = image.get("height"), image.get("width")
    try:
        if height is None or width is None:
            height, width = size  # type: ignore[misc]
        check_rle(found, "", height, width)
    except (ValueError, TypeError):
        return "their RLE is damaged or of another size than their image"
    return ""


def decode_mask(annotation: dict[str, Any], height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8 (height, width) from polygons or RLE.

    Raises:
        ValueError: a segmentation that can't be read, or of another size.
    """
    reason = malformed(annotation, {"height": height, "width": width})
    if reason or not has_mask(annotation):
        raise ValueError(
            f"annotation {annotation['id']} has no mask, since {reason or 'it has no segmentation'}"
        )
    codec = require("pycocotools.mask", extra="detection")
    found = annotation["segmentation"]
    if isinstance(found, list):
        packed = codec.merge(codec.frPyObjects(found, height, width))
    elif isinstance(found["counts"], list):
        packed = codec.frPyObjects(found, height, width)
    else:
        packed = {"size": found["size"], "counts": str(found["counts"]).encode("ascii")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own __array__ under NumPy 2
        # A copy: the codec's array may outlive what it points to.
        return np.array(codec.decode(packed))


def within_reach(points: list[Any]) -> bool:
    """Whether all coordinates of a polygon are finite numbers below 1e6.

    pycocotools walks along each edge in steps of less than a pixel, so a far corner would take all memory.
    """
    return all(is_number(value) and abs(value) < 1e6 for value in points)
