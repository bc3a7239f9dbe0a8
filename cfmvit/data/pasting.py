"""Photographs pasted onto a larger image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cfmvit.data.entries import DetectionEntry
from cfmvit.data.images import CorruptSample, decode_rgb
from cfmvit.data.scenes.config import SplitConfig
from cfmvit.data.shards import ShardSample
from cfmvit.data.transforms import resize

Box = tuple[float, float, float, float]

_PLACES = 24
_FEATHER = 3


def paste_photos(
    photos: Sequence[DetectionEntry], behind: DetectionEntry, split: SplitConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[Box | None]]:
    """Paste photos beside each other, as large as ``split`` says, at random places.

    Args:
        photos: samples of shards, with one box each.
        behind: the photo that the background is made of.

    Returns:
        uint8 (size, size, 3), and for each photo its box (x, y, width, height), or None where it found no place.
    """
    canvas = _backdrop(behind, split.size, rng)
    taken = np.zeros((split.size, split.size), bool)
    boxes: list[Box | None] = []
    low, high = np.log(split.scale)
    for entry in photos:
        photo, (x, y, width, height) = _photo(entry, float(np.exp(rng.uniform(low, high))))
        place = _find_place(taken, photo.shape[0], photo.shape[1], rng)
        boxes.append(None if place is None else (place[1] + x, place[0] + y, width, height))
        if place is not None:
            _paste(canvas, photo, *place)
            taken[place[0] : place[0] + photo.shape[0], place[1] : place[1] + photo.shape[1]] = True
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), boxes


def outline(box: Box) -> list[list[float]]:
    """Return a box as a polygon, the segmentation where nothing better is known."""
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _read(entry: DetectionEntry) -> NDArray[np.uint8]:
    assert isinstance(entry.source, ShardSample)
    return decode_rgb(entry.source.read("image"), entry.key)


def _backdrop(entry: DetectionEntry, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A photo blurred beyond recognition: natural colours and soft edges, nothing to find."""
    blurred = resize(resize(_read(entry), 5, 5), size, size).astype(np.float32)
    dull = blurred * 0.6 + blurred.mean() * 0.25
    return dull + rng.standard_normal((size, size, 1), dtype=np.float32) * 3


def _photo(entry: DetectionEntry, side: float) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """Return the photo with ``side`` as its longer side, and its box (x, y, width, height) in it."""
    pixels = _read(entry)
    height, width = pixels.shape[:2]
    ratio = side / max(height, width)
    scaled = resize(pixels, max(1, round(height * ratio)), max(1, round(width * ratio)))
    x, y, w, h = entry.annotations[0]["bbox"]
    sx, sy = scaled.shape[1] / width, scaled.shape[0] / height
    if x + w > width or y + h > height:
        raise CorruptSample(entry.key, f"its box lies outside its {width} x {height} pixels")
    return scaled, (round(x * sx, 2), round(y * sy, 2), round(w * sx, 2), round(h * sy, 2))


def _find_place(
    taken: NDArray[np.bool_], height: int, width: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    size = len(taken)
    for _ in range(_PLACES):
        top, left = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
        if not taken[top : top + height, left : left + width].any():
            return top, left
    return None


def _paste(canvas: NDArray[np.float32], photo: NDArray[np.uint8], top: int, left: int) -> None:
    """Blend the photo in, its outermost pixels fading."""
    height, width = photo.shape[:2]
    rows = np.minimum(np.arange(height), np.arange(height)[::-1])
    columns = np.minimum(np.arange(width), np.arange(width)[::-1])
    alpha = np.clip((np.minimum(rows[:, None], columns) + 1) / np.float32(_FEATHER + 1), 0, 1)[..., None]
    region = canvas[top : top + height, left : left + width]
    region += (photo - region) * alpha
