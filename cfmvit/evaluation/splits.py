"""The COCO open-vocabulary split (Bansal et al. 2018): 48 base and 17 novel of the 80 categories."""

from __future__ import annotations

from typing import Any

_BASE = """person, bicycle, car, motorcycle, train, truck, boat, bench, bird, horse, sheep, bear, zebra, giraffe,
backpack, handbag, suitcase, frisbee, skis, kite, surfboard, bottle, fork, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, pizza, donut, chair, bed, toilet, tv, laptop, mouse, remote, microwave, oven, toaster, refrigerator,
book, clock, vase, toothbrush"""
_NOVEL = """airplane, bus, cat, dog, cow, elephant, umbrella, tie, snowboard, skateboard, cup, knife, cake, couch,
keyboard, sink, scissors"""

COCO_BASE = frozenset(name.strip() for name in _BASE.split(","))
COCO_NOVEL = frozenset(name.strip() for name in _NOVEL.split(","))


def open_vocabulary_split(categories: Any) -> tuple[list[int], list[int]] | None:
    """Return base and novel ids of an annotation file's categories, or None where they are not COCO's.

    Args:
        categories: the file's list of ``{"id", "name"}``; LVIS's, which have a frequency, carry their own split.
    """
    if not isinstance(categories, list):
        return None
    names = {entry.get("name"): entry.get("id") for entry in categories if "frequency" not in entry}
    if not names.keys() >= (COCO_BASE | COCO_NOVEL):
        return None
    return sorted(names[name] for name in COCO_BASE), sorted(names[name] for name in COCO_NOVEL)
