"""Pasting photographs onto a textured background, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfmvit.data.scenes.config import SplitConfig
from cfmvit.data.scenes.drawing import background
from cfmvit.data.transforms import resize

_SIZES, _PLACES, _WAVES = 4, 12, 3

Box = tuple[float, float, float, float]  # x, y, width, height


class Photograph(NamedTuple):
    """Pixels, uint8 (H, W, 3), and the x0, y0, x1, y1 of their object."""

    pixels: NDArray[np.uint8]
    corners: NDArray[np.float32]


def paste(
    photographs: Sequence[Photograph], split: SplitConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[Box | None]]:
    """Paste photographs without overlap, each as it is drawn from ``split.scale``, smaller where there is no place.

    Returns:
        uint8 (size, size, 3), and the object's box of each photograph; None of one for which there is no place.
    """
    image = textured(split.size, rng)
    taken: list[tuple[int, int, int]] = []
    boxes: list[Box | None] = []
    low, high = np.log(split.scale)
    for photograph in photographs:
        place = _place(float(np.exp(rng.uniform(low, high))), split, taken, rng)
        boxes.append(None if place is None else _put(image, photograph, *place))
        if place is not None:
            taken.append(place)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), boxes


def textured(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a dull background with a few waves over it, float32 (size, size, 3)."""
    image = background(size, rng)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(size)
    for _ in range(_WAVES):
        across, down = rng.uniform(-24, 24, 2).astype(np.float32)
        wave = np.sin(np.float32(2 * np.pi) * (across * x + down * y + np.float32(rng.random())))
        image += wave[..., None] * rng.uniform(-9, 9, 3).astype(np.float32)
    return image


def _place(
    side: float, split: SplitConfig, taken: Sequence[tuple[int, int, int]], rng: np.random.Generator
) -> tuple[int, int, int] | None:
    """Return left, top and side of a free square."""
    for _ in range(_SIZES):
        count = round(side)
        for left, top in rng.integers(0, split.size - count + 1, (_PLACES, 2)).tolist():
            if all(
                left + count <= x or x + s <= left or top + count <= y or y + s <= top for x, y, s in taken
            ):
                return left, top, count
        side = max(0.7 * side, split.scale[0])
    return None


def _put(image: NDArray[np.float32], photograph: Photograph, left: int, top: int, side: int) -> Box:
    height, width = photograph.pixels.shape[:2]
    factor = side / max(height, width)
    tall, wide = max(1, round(height * factor)), max(1, round(width * factor))
    image[top : top + tall, left : left + wide] = resize(photograph.pixels, tall, wide)
    x0, y0, x1, y1 = (photograph.corners * np.array([wide / width, tall / height] * 2)).tolist()
    return left + x0, top + y0, x1 - x0, y1 - y0
