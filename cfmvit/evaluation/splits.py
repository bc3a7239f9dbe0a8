"""The open-vocabulary split of an annotation file's categories: their own, or that of COCO."""

from __future__ import annotations

from typing import Any

from cfmvit.data.splits import COCO_BASE, COCO_NOVEL


def open_vocabulary_split(categories: Any) -> tuple[list[int], list[int]] | None:
    """Return base and novel ids of an annotation file's categories: by their ``novel``, or as COCO's; else None.

    Args:
        categories: the file's list of ``{"id", "name"}``; LVIS's, which have a frequency, carry their own split.
    """
    if not isinstance(categories, list):
        return None
    if categories and all(isinstance(entry.get("novel"), bool) for entry in categories):
        base, novel = (
            [entry["id"] for entry in categories if entry["novel"] == kind] for kind in (False, True)
        )
        return base, novel
    names = {entry.get("id"): entry.get("name") for entry in categories if "frequency" not in entry}
    if any(names.get(key) != name for key, name in {**COCO_BASE, **COCO_NOVEL}.items()):
        return None
    return list(COCO_BASE), list(COCO_NOVEL)
