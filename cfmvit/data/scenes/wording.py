"""Captions that name objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FRAMES = (
    "a photo of {}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "there is {}",
    "a scene with {}",
    "{}",
)
_JOINTS = (" and ", " and ", " next to ", " with ")


def caption(names: Sequence[str], rng: np.random.Generator) -> str:
    """Name every object once, in an order and a wording that vary."""
    things = [_article(names[number]) for number in rng.permutation(len(names))]
    frame = _FRAMES[rng.integers(len(_FRAMES))]
    last = _JOINTS[rng.integers(len(_JOINTS))] if len(things) == 2 else " and "
    return frame.format(last.join(filter(None, [", ".join(things[:-1]), things[-1]])))


def _article(name: str) -> str:
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
