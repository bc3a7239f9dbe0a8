"""Which boxes of an annotation file can be used."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)
_NAMED = 10


def usable(
    grouped: dict[int, list[dict[str, Any]]], images: dict[int, dict[str, Any]], known: set[int], source: Path
) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations of each image whose box can be used; crowds are left out.

    A box (x, y, width, height) must be finite, of positive size, and lie within its image at least in part. Others are
    dropped; how many, and their ids, are logged once.

    Args:
        known: category ids of the file.

    Raises:
        ValueError: an annotation of an unknown category.
    """
    kept: dict[int, list[dict[str, Any]]] = {}
    dropped = []
    for image_id, members in grouped.items():
        kept[image_id] = []
        for annotation in members:
            if annotation["category_id"] not in known:
                raise ValueError(
                    f"data: {source}: annotation {annotation['id']} has the unknown category {annotation['category_id']}"
                )
            if not _sound(annotation["bbox"], images[image_id]):
                dropped.append(annotation["id"])
            elif not annotation.get("iscrowd"):
                kept[image_id].append(annotation)
    log_dropped(dropped, source)
    return kept


def log_dropped(names: list[Any], source: Path) -> None:
    """Log that boxes can't be used, if there are any."""
    if names:
        shown = ", ".join(map(str, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
        _LOG.warning(
            "dropped %d boxes of %s that are not finite, have no area or lie outside: %s",
            len(names),
            source,
            shown,
        )


def _sound(box: Any, image: dict[str, Any]) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        return False
    x, y, width, height = box
    inside = x < image.get("width", math.inf) and y < image.get("height", math.inf)
    return width > 0 and height > 0 and x + width > 0 and y + height > 0 and inside


def is_number(value: Any) -> bool:
    """Whether a value of a json file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
