"""Drawing: backgrounds, and objects with antialiased edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfmvit.data.scenes.shapes import DISTANCES, Field
from cfmvit.data.scenes.vocabulary import COLOURS, Composition


@dataclass
class Sprite:
    """One object on a square of pixels.

    Attributes:
        colours: float32 (h, h, 3) in 0 .. 255.
        alpha: float32 (h, h), the coverage of each pixel.
    """

    colours: NDArray[np.float32]
    alpha: Field

    @property
    def solid(self) -> NDArray[np.bool_]:
        """The pixels that it covers at least half, (h, h)."""
        return self.alpha >= 0.5


def sprite_size(side: float) -> int:
    """Pixels of the square on which a shape ``side`` pixels wide is drawn; it is slightly turned."""
    return int(np.ceil(side * 1.12)) + 2


def background(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth, dull background with a little grain, float32 (size, size, 3).

    Four corner colours are blended, so there is a gradient in some direction; saturation stays low, so the colours of
    objects mean something.
    """
    grey = rng.uniform(96, 176)
    corners = (grey + rng.uniform(-34, 34, (2, 2, 1)) + rng.uniform(-12, 12, (2, 2, 3))).astype(np.float32)
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    rows = corners[0] + (corners[1] - corners[0]) * ramp[:, None, None]
    image = rows[:, None, 0] + (rows[:, None, 1] - rows[:, None, 0]) * ramp[None, :, None]
    grain = rng.standard_normal((size, size, 1), dtype=np.float32)
    return image + grain * np.float32(rng.uniform(1, 6))


def sprite(category: Composition, side: float, rng: np.random.Generator) -> Sprite:
    """Draw one object whose shape is about ``side`` pixels wide, slightly turned."""
    half = side / 2
    count = sprite_size(side)
    # The centre lies anywhere within its pixel.
    shift = rng.uniform(-0.5, 0.5, 2)
    axis = np.arange(count, dtype=np.float32) - np.float32((count - 1) / 2)
    turn = np.deg2rad(rng.uniform(-16, 16))
    dx, dy = (axis - np.float32(shift[0]))[None, :], (axis - np.float32(shift[1]))[:, None]
    cos, sin = np.float32(np.cos(turn) / half), np.float32(np.sin(turn) / half)
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    if rng.random() < 0.5:
        x = -x
    distance = DISTANCES[category.shape](x, y) * np.float32(half)
    alpha = np.clip(0.5 - distance, 0, 1)
    colours = _fill(category, x, y, distance, half, rng)
    return Sprite(colours, alpha)


def _fill(
    category: Composition, x: Field, y: Field, distance: Field, half: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    base = np.clip(np.asarray(COLOURS[category.colour]) + rng.uniform(-10, 10, 3), 0, 255).astype(np.float32)
    tone, _, pattern = category.texture.rpartition("-")
    second = np.float32(244 if tone == "white" else 24)
    share = _texture(pattern, x, y, half, rng)[..., None]
    colours = base + (second - base) * share
    # A soft darker rim and light from above lift the object off the background.
    rim = np.clip((distance + 2.2) / 1.6, 0, 1)[..., None]
    light = np.clip(1 - 0.12 * y, 0.85, 1.15)[..., None]
    return np.clip(colours * light * (1 - 0.35 * rim), 0, 255)


def _texture(name: str, x: Field, y: Field, half: float, rng: np.random.Generator) -> Field:
    """Return the share of the second colour, 0 .. 1, (H, W); periods are at least 6 pixels."""
    if name == "plain":
        return np.zeros(x.shape, np.float32)
    period = max(rng.uniform(0.42, 0.52), 6 / half)
    angle = np.deg2rad(rng.uniform(0, 180) if name == "striped" else rng.uniform(-20, 20))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (x * cos + y * sin) / np.float32(period), (y * cos - x * sin) / np.float32(period)
    u, v = u + np.float32(rng.random()), v + np.float32(rng.random())
    pixel = np.float32(1 / (half * period))
    if name == "striped":
        return _step(np.abs(u - np.round(u)) - np.float32(0.22), pixel)
    if name == "checkered":
        return _step(np.sin(np.float32(np.pi) * u) * np.sin(np.float32(np.pi) * v) / np.float32(np.pi), pixel)
    rows = np.round(v / np.float32(0.87))
    u = u + 0.5 * (rows % 2)
    spots = np.hypot(u - np.round(u), v - rows * np.float32(0.87))
    return _step(spots - 0.29, pixel)


def _step(distance: Field, pixel: np.float32) -> Field:
    """Antialiased: 1 where ``distance`` is negative, 0 where it is positive."""
    return np.clip(0.5 - distance / pixel, 0, 1)
