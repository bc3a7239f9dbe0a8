"""Composing a scene: sprites on a background, none of them hidden by others beyond a limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfmvit.data.scenes.config import SplitConfig
from cfmvit.data.scenes.drawing import Sprite, background, sprite
from cfmvit.data.scenes.vocabulary import Composition

_SIZES = 3
_PLACES = 8

Slices = tuple[slice, slice]


@dataclass
class Placed:
    """An object of a scene.

    Attributes:
        mask: its visible region, bool (size, size).
        whole: its number of pixels before anything covers it.
    """

    category: Composition
    mask: NDArray[np.bool_]
    whole: int

    def box(self) -> tuple[int, int, int, int]:
        """Return x, y, width, height of the visible region."""
        columns, rows = np.flatnonzero(self.mask.any(0)), np.flatnonzero(self.mask.any(1))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def compose_scene(
    categories: list[Composition], split: SplitConfig, min_visible: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[Placed]]:
    """Draw the categories onto one image, the later ones in front.

    An object for which no place is found, at smaller sizes too, stays away.

    Returns:
        uint8 (size, size, 3), and the objects with their visible regions.
    """
    image = background(split.size, rng)
    placed: list[Placed] = []
    low, high = np.log(split.scale)
    for category in categories:
        side = float(np.exp(rng.uniform(low, high)))
        for _ in range(_SIZES):
            item = sprite(category, side, rng)
            window = _find_place(item, placed, split.size, min_visible, rng)
            if window is not None:
                _put(image, item, category, window, placed)
                break
            side = max(side * 0.8, split.scale[0])
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), placed


def _find_place(
    item: Sprite, placed: list[Placed], size: int, min_visible: float, rng: np.random.Generator
) -> Slices | None:
    """Return where the sprite leaves enough of every other object visible."""
    count = len(item.alpha)
    solid = item.solid
    for left, top in rng.integers(0, size - count + 1, (_PLACES, 2)).tolist():
        window = (slice(top, top + count), slice(left, left + count))
        if all(_remaining(other, window, solid) >= min_visible * other.whole for other in placed):
            return window
    return None


def _remaining(other: Placed, window: Slices, solid: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(other.mask) - np.count_nonzero(other.mask[window] & solid))


def _put(
    image: NDArray[np.float32], item: Sprite, category: Composition, window: Slices, placed: list[Placed]
) -> None:
    solid = item.solid
    for other in placed:
        other.mask[window] &= ~solid
    mask = np.zeros(image.shape[:2], bool)
    mask[window] = solid
    placed.append(Placed(category, mask, int(np.count_nonzero(solid))))
    image[window] += (item.colours - image[window]) * item.alpha[..., None]
