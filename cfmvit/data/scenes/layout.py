"""Composing a scene: sprites on a background, none of them hidden by others beyond a limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfmvit.data.scenes.config import SplitConfig
from cfmvit.data.scenes.drawing import background, sprite
from cfmvit.data.scenes.vocabulary import Composition

_ATTEMPTS = 24


@dataclass
class Placed:
    """An object of a scene; ``mask`` is its visible region, bool (size, size)."""

    category: Composition
    mask: NDArray[np.bool_]

    def box(self) -> tuple[int, int, int, int]:
        """Return x, y, width, height of the visible region."""
        columns, rows = np.flatnonzero(self.mask.any(0)), np.flatnonzero(self.mask.any(1))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def compose_scene(
    categories: list[Composition], split: SplitConfig, min_visible: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[Placed]]:
    """Draw the categories onto one image, the later ones in front.

    An object for which no place is found stays away.

    Returns:
        uint8 (size, size, 3), and the objects with their visible regions.
    """
    size = split.size
    image = background(size, rng)
    placed: list[Placed] = []
    whole: list[int] = []  # pixels of each object before anything covers it
    low, high = np.log(split.scale)
    for category in categories:
        side = float(np.exp(rng.uniform(low, high)))
        for attempt in range(_ATTEMPTS):
            if attempt % 8 == 7:
                side = max(side * 0.8, split.scale[0])
            item = sprite(category, side, rng)
            count = len(item.alpha)
            if count > size:
                cut = (count - size + 1) // 2
                item.alpha, item.colours = item.alpha[cut : cut + size, cut : cut + size], item.colours[cut : cut + size, cut : cut + size]
                count = size
            left, top = (int(v) for v in rng.integers(0, size - count + 1, 2))
            window = np.s_[top : top + count, left : left + count]
            solid = item.alpha >= 0.5
            if all(
                np.count_nonzero(other.mask) - np.count_nonzero(other.mask[window] & solid) >= min_visible * full
                for other, full in zip(placed, whole)
            ):
                break
        else:
            continue
        for other in placed:
            other.mask[window] &= ~solid
        mask = np.zeros((size, size), bool)
        mask[window] = solid
        placed.append(Placed(category, mask))
        whole.append(int(np.count_nonzero(solid)))
        image[window] += (item.colours - image[window]) * item.alpha[..., None]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), placed
