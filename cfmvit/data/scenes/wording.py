"""Captions of scenes."""

from __future__ import annotations

import numpy as np

from cfmvit.data.scenes.vocabulary import Composition

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


def caption(categories: list[Composition], rng: np.random.Generator) -> str:
    """Name every category once, in an order and a wording that vary."""
    names = [_article(categories[number].name) for number in rng.permutation(len(categories))]
    frame = _FRAMES[rng.integers(len(_FRAMES))]
    last = _JOINTS[rng.integers(len(_JOINTS))] if len(names) == 2 else " and "
    return frame.format(last.join(filter(None, [", ".join(names[:-1]), names[-1]])))


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
