"""Resizing, cropping, flipping; all randomness comes from the generator given. Images are uint8 (H, W, 3) arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require

Pixels = NDArray[np.uint8]
Window = tuple[float, float, float, float]


@dataclass
class Objects:
    """What moves with an image.

    Attributes:
        boxes: float32 (n, 4) xyxy.
        labels: int64 (n,).
        masks: uint8 (n, H, W).
        has_mask: bool (n,): whose mask is known.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    has_mask: NDArray[np.bool_]

    @classmethod
    def none(cls, height: int, width: int) -> Objects:
        """Return no objects in an image of that size."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.int64),
            np.zeros((0, height, width), np.uint8),
            np.zeros(0, bool),
        )

    def select(self, kept: NDArray[np.bool_]) -> Objects:
        """Return those of a boolean index."""
        return Objects(self.boxes[kept], self.labels[kept], self.masks[kept], self.has_mask[kept])


def resize(pixels: Pixels, height: int, width: int, box: Window | None = None) -> Pixels:
    """Resample (a ``box`` x1, y1, x2, y2 of) an image, bicubic with antialiasing."""
    pil = require("PIL.Image", extra="models")
    if box is None and pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(pil.fromarray(pixels).resize((width, height), pil.Resampling.BICUBIC, box=box))


def random_resized_crop(
    pixels: Pixels, size: int, scale: tuple[float, float], rng: np.random.Generator, flip: bool
) -> Pixels:
    """Crop a random part of ``scale`` of the area, aspect 3/4 to 4/3, to (size, size); mirror half of them."""
    height, width = pixels.shape[:2]
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if w <= width and h <= height:
            break
    else:
        w = h = float(min(width, height))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    out = resize(pixels, size, size, (x, y, min(x + w, width), min(y + h, height)))
    return out[:, ::-1] if flip and rng.random() < 0.5 else out


def center_crop(pixels: Pixels, size: int) -> Pixels:
    """Resize the largest centred square to (size, size)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    x, y = (width - side) / 2, (height - side) / 2
    return resize(pixels, size, size, None if height == width else (x, y, x + side, y + side))


def fit(pixels: Pixels, objects: Objects, size: int) -> tuple[Pixels, Objects, tuple[int, int]]:
    """Scale the longer side to ``size``, and pad with zeros on the right or below to (size, size).

    Returns:
        the image, the objects, and (height, width) of the part that is not padding.
    """
    height, width = pixels.shape[:2]
    valid = scaled_size(height, width, size / max(height, width))
    return _move(pixels, objects, (0, 0, width, height), valid, size)


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Return the whole (height, width) nearest to ``scale`` times an image's."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def jitter(
    pixels: Pixels,
    objects: Objects,
    size: int,
    scales: tuple[float, float],
    rng: np.random.Generator,
    flip: bool,
) -> tuple[Pixels, Objects, tuple[int, int]]:
    """Large-scale jitter: mirror half of the images, scale by a random factor of the fit, crop at random, pad.

    Objects of which less than a tenth of the box, or less than 2 pixels on a side, remains are dropped.
    """
    if flip and rng.random() < 0.5:
        pixels, objects = mirror(pixels, objects)
    height, width = pixels.shape[:2]
    scale = size / max(height, width) * rng.uniform(*scales)
    valid = tuple(min(side, size) for side in scaled_size(height, width, scale))
    # The window of the original that the valid part shows.
    seen_h, seen_w = min(height, valid[0] / scale), min(width, valid[1] / scale)
    top, left = rng.uniform(0, height - seen_h), rng.uniform(0, width - seen_w)
    window = (left, top, min(left + seen_w, width), min(top + seen_h, height))
    image, moved, valid = _move(pixels, objects, window, (valid[0], valid[1]), size)
    sides = moved.boxes[:, 2:] - moved.boxes[:, :2]
    share = _area(moved.boxes) / (_area(objects.boxes) * np.float32(scale * scale))
    kept = (sides >= 2).all(axis=1) & (share >= 0.1)
    return image, moved.select(kept), valid


def mirror(pixels: Pixels, objects: Objects) -> tuple[Pixels, Objects]:
    """Swap left and right."""
    width = np.float32(pixels.shape[1])
    left, top, right, bottom = objects.boxes.T
    boxes = np.stack([width - right, top, width - left, bottom], axis=1)
    return pixels[:, ::-1], replace(objects, boxes=boxes, masks=objects.masks[:, :, ::-1])


def _move(
    pixels: Pixels, objects: Objects, window: Window, valid: tuple[int, int], size: int
) -> tuple[Pixels, Objects, tuple[int, int]]:
    """Show the ``window`` (x1, y1, x2, y2) of an image as the ``valid`` (height, width) corner of (size, size)."""
    image = np.zeros((size, size, 3), np.uint8)
    whole = window == (0, 0, pixels.shape[1], pixels.shape[0])
    image[: valid[0], : valid[1]] = resize(
        np.ascontiguousarray(pixels), valid[0], valid[1], None if whole else window
    )
    ratio = np.array([valid[1] / (window[2] - window[0]), valid[0] / (window[3] - window[1])] * 2)
    boxes = (objects.boxes - np.array([window[0], window[1]] * 2)) * ratio
    boxes = np.clip(boxes, 0, [valid[1], valid[0]] * 2).astype(np.float32)
    masks = np.zeros((len(boxes), size, size), np.uint8)
    for number, mask in enumerate(objects.masks):
        _move_mask(mask, window, valid, boxes[number], masks[number])
    return image, replace(objects, boxes=boxes, masks=masks), valid


def _move_mask(
    mask: NDArray[np.uint8],
    window: Window,
    valid: tuple[int, int],
    box: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    """Resample only what lies within the moved box: an object is small beside its image."""
    x1, y1 = (max(0, math.floor(value) - 1) for value in box[:2])
    x2, y2 = (min(side, math.ceil(value) + 1) for side, value in zip(valid[::-1], box[2:]))
    if x1 >= x2 or y1 >= y2:
        return
    step_x, step_y = (window[2] - window[0]) / valid[1], (window[3] - window[1]) / valid[0]
    source = (
        window[0] + x1 * step_x,
        window[1] + y1 * step_y,
        min(window[0] + x2 * step_x, mask.shape[1]),
        min(window[1] + y2 * step_y, mask.shape[0]),
    )
    pil = require("PIL.Image", extra="models")
    grey = pil.fromarray(np.ascontiguousarray(mask) * 255)
    out[y1:y2, x1:x2] = np.asarray(grey.resize((x2 - x1, y2 - y1), pil.Resampling.BILINEAR, box=source)) > 127


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
