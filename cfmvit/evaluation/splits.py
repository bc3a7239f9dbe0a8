"""Whether an annotation file has COCO's categories, and so the open-vocabulary split of them."""

from __future__ import annotations

from typing import Any

from cfmvit.data.splits import COCO_BASE, COCO_NOVEL


def open_vocabulary_split(categories: Any) -> tuple[list[int], list[int]] | None:
    """Return base and novel ids of an annotation file's categories, or None where they are not COCO's.

    Args:
        categories: the file's list of ``{"id", "name"}``; LVIS's, which have a frequency, carry their own split.
    """
    if not isinstance(categories, list):
        return None
    names = {entry.get("id"): entry.get("name") for entry in categories if "frequency" not in entry}
    if any(names.get(key) != name for key, name in {**COCO_BASE, **COCO_NOVEL}.items()):
        return None
    return list(COCO_BASE), list(COCO_NOVEL)
