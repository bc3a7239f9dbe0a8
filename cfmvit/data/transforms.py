"""Resizing, cropping, flipping; all randomness comes from the generator given. Images are uint8 (H, W, 3) arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require

Pixels = NDArray[np.uint8]


@dataclass
class Objects:
    """What moves with an image: ``boxes`` float32 (n, 4) xyxy, ``labels`` int64 (n,), ``masks`` uint8 (n, H, W)."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]

    def keep(self, chosen: NDArray[np.bool_]) -> Objects:
        """Return the chosen ones."""
        return Objects(self.boxes[chosen], self.labels[chosen], self.masks[chosen])


def resize(pixels: Pixels, height: int, width: int, box: tuple[float, float, float, float] | None = None) -> Pixels:
    """Resample (a ``box`` x1, y1, x2, y2 of) an image, bicubic with antialiasing."""
    pil = require("PIL.Image", extra="models")
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
    out = resize(pixels, size, size, (x, y, x + w, y + h))
    return out[:, ::-1] if flip and rng.random() < 0.5 else out


def center_crop(pixels: Pixels, size: int) -> Pixels:
    """Resize the largest centred square to (size, size)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    x, y = (width - side) / 2, (height - side) / 2
    return resize(pixels, size, size, (x, y, x + side, y + side))


def fit(pixels: Pixels, objects: Objects, scale: float, size: int) -> tuple[Pixels, Objects, tuple[int, int]]:
    """Scale an image and its objects, then pad with zeros on the right and below to (size, size), cutting what is beyond.

    Returns:
        the image, the objects, and (height, width) of the part that is not padding.
    """
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    scaled = resize(pixels, height, width) if (height, width) != pixels.shape[:2] else pixels
    height, width = min(height, size), min(width, size)
    out = np.zeros((size, size, 3), np.uint8)
    out[:height, :width] = scaled[:height, :width]
    boxes = (objects.boxes * scale).astype(np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    masks = np.zeros((len(boxes), size, size), np.uint8)
    pil = require("PIL.Image", extra="models")
    for mask, source in zip(masks, objects.masks):
        shape = (max(1, round(source.shape[1] * scale)), max(1, round(source.shape[0] * scale)))
        moved = np.asarray(pil.fromarray(source * 255).resize(shape, pil.Resampling.BILINEAR)) > 127
        mask[:height, :width] = moved[:height, :width]
    return out, replace(objects, boxes=boxes, masks=masks), (height, width)


def jitter(
    pixels: Pixels, objects: Objects, size: int, scales: tuple[float, float], rng: np.random.Generator, flip: bool
) -> tuple[Pixels, Objects, tuple[int, int]]:
    """Large-scale jitter: mirror half of the images, scale by a random factor of the fit, crop at random, pad.

    Objects of which less than a tenth, or less than 2 pixels, remains are dropped.
    """
    if flip and rng.random() < 0.5:
        width = pixels.shape[1]
        mirrored = objects.boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
        mirrored += np.array([width, 0, width, 0], np.float32)
        pixels, objects = pixels[:, ::-1], replace(objects, boxes=mirrored, masks=objects.masks[:, :, ::-1])
    scale = size / max(pixels.shape[:2]) * rng.uniform(*scales)
    visible = size / scale
    top, left = (int(rng.uniform(0, max(0.0, side - visible))) for side in pixels.shape[:2])
    area = _area(objects.boxes)
    window = np.array([left, top, left, top], np.float32)
    moved = replace(objects, boxes=objects.boxes - window, masks=np.ascontiguousarray(objects.masks[:, top:, left:]))
    out, moved, valid = fit(np.ascontiguousarray(pixels[top:, left:]), moved, scale, size)
    sides = moved.boxes[:, 2:] - moved.boxes[:, :2]
    left_over = _area(moved.boxes) >= 0.1 * area * scale**2
    return out, moved.keep((sides >= 2).all(axis=1) & left_over), valid


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
