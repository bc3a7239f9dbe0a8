"""The open-vocabulary split of an annotation file's categories: their own, or that of COCO."""

from __future__ import annotations

from typing import Any

from cfmvit.data.splits import COCO_BASE, COCO_NOVEL


def open_vocabulary_split(categories: Any) -> tuple[list[int], list[int]] | None:
    """Return base and novel ids of an annotation file's categories: by their ``novel``, or as COCO's; else None.

    Args:
        categories: the file's list of ``{"id", "name"}``; LVIS's, which have a frequency, carry their own split.
    """
    if not isinstance(categories, list) or not all(_has_id(entry) for entry in categories):
        return None  # what is wrong is said where the file is loaded
    if all(isinstance(entry.get("novel"), bool) for entry in categories):
        base, novel = (
            [entry["id"] for entry in categories if entry["novel"] == kind] for kind in (False, True)
        )
        return (base, novel) if base and novel else None
    names = {entry["id"]: entry.get("name") for entry in categories if "frequency" not in entry}
    if any(names.get(key) != name for key, name in {**COCO_BASE, **COCO_NOVEL}.items()):
        return None
    return list(COCO_BASE), list(COCO_NOVEL)


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), int)
