"""Categories, and which of them are novel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfmvit.data.splits import COCO_BASE, COCO_NOVEL


@dataclass(frozen=True)
class Category:
    """A category: its id in the file, its name, LVIS's frequency (r, c, f) where it has one, and whether it is novel."""

    id: int
    name: str
    frequency: str | None
    novel: bool


def file_categories(entries: list[dict[str, Any]], source: Path) -> list[Category]:
    """Return the categories of a COCO or LVIS file in the order of their ids.

    With frequencies (LVIS) the rare ones are novel. COCO's own are the 48 base and 17 novel ones of the
    open-vocabulary split; the other 15 are left out. Categories of any other file are all base.

    Raises:
        ValueError: a frequency other than r, c and f.
    """
    entries = sorted(entries, key=lambda entry: entry["id"])
    if any("frequency" in entry for entry in entries):
        for entry in entries:
            if entry.get("frequency") not in ("r", "c", "f"):
                raise ValueError(
                    f"data: {source}: the frequency of category {entry['id']} must be r, c or f, "
                    f"got {entry.get('frequency')!r}"
                )
        return [Category(e["id"], _name(e), e["frequency"], e["frequency"] == "r") for e in entries]
    coco = {**COCO_BASE, **COCO_NOVEL}
    if coco.items() <= {entry["id"]: entry["name"] for entry in entries}.items():
        return [Category(number, coco[number], None, number in COCO_NOVEL) for number in sorted(coco)]
    return [Category(entry["id"], _name(entry), None, False) for entry in entries]


def shard_categories(path: Path) -> list[Category]:
    """Return the categories of the ``categories.json`` beside shards: a list of ``{"id", "name", "novel"}``.

    Raises:
        FileNotFoundError, ValueError: it is missing or malformed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data: shards with boxes need their categories, and there is no {path}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        found = [Category(int(e["id"]), str(e["name"]), None, bool(e.get("novel", False))) for e in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'data: {path} must be a list of {{"id", "name", "novel"}}: {error}') from error
    if len({category.id for category in found}) < len(found):
        raise ValueError(f"data: {path} has an id twice")
    return sorted(found, key=lambda category: category.id)


def _name(entry: dict[str, Any]) -> str:
    """LVIS writes underscores for spaces; what a text tower reads has spaces."""
    return str(entry["name"]).replace("_", " ")
