"""Which annotations of a file can be used."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from cfmvit.data.annotations import is_number
from cfmvit.data.masks import malformed

_LOG = logging.getLogger(__name__)
_NAMED = 10


@dataclass
class Usable:
    """The annotations of each image that can be used, and how many can't.

    Attributes:
        kept: by image id.
        crowds: how many mark a crowd; those are left out.
        dropped: how many are malformed.
    """

    kept: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    crowds: int = 0
    dropped: int = 0


def usable(
    grouped: dict[int, list[dict[str, Any]]], images: dict[int, dict[str, Any]], known: set[int], source: Path
) -> Usable:
    """Return the annotations of each image that can be used.

    A box (x, y, width, height) must be finite, of positive size, and lie within its image at least in part; a
    segmentation, where there is one, must be polygons or RLE. Others are dropped; how many, their ids and why is logged
    once.

    Args:
        known: category ids of the file.

    Raises:
        ValueError: an annotation of an unknown category, or an ``iscrowd`` other than 0 and 1.
    """
    found = Usable()
    reasons: dict[str, list[Any]] = {}
    for image_id, members in grouped.items():
        found.kept[image_id] = []
        for annotation in members:
            if annotation["category_id"] not in known:
                raise ValueError(
                    f"data: {source}: annotation {annotation['id']} has the unknown category {annotation['category_id']}"
                )
            if _is_crowd(annotation, source):
                found.crowds += 1
            elif not _sound(annotation["bbox"], images[image_id]):
                reasons.setdefault("their box is not finite, has no area or lies outside", []).append(
                    annotation["id"]
                )
            elif reason := malformed(annotation, images[image_id]):
                reasons.setdefault(reason, []).append(annotation["id"])
            else:
                found.kept[image_id].append(annotation)
    for reason, names in reasons.items():
        log_dropped(names, source, reason)
        found.dropped += len(names)
    return found


def log_dropped(names: list[Any], source: Path, reason: str) -> None:
    """Log that annotations can't be used, if there are any, and why."""
    if names:
        shown = ", ".join(map(str, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
        _LOG.warning("dropped %d annotations of %s, since %s: %s", len(names), source, reason, shown)


def _is_crowd(annotation: dict[str, Any], source: Path) -> bool:
    crowd = annotation.get("iscrowd", 0)
    if not isinstance(crowd, Integral) or crowd not in (0, 1):
        raise ValueError(
            f"data: {source}: iscrowd of annotation {annotation['id']} must be 0 or 1, got {crowd!r}"
        )
    return bool(crowd)


def _sound(box: Any, image: dict[str, Any]) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        return False
    x, y, width, height = box
    inside = x < image.get("width", math.inf) and y < image.get("height", math.inf)
    return width > 0 and height > 0 and x + width > 0 and y + height > 0 and inside
