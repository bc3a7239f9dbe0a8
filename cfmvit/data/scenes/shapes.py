"""Signed distances to the shapes: negative inside, in units of the shape's half side.

Each takes x to the right and y downwards, float32 (H, W), over about [-1, 1] x [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]


def circle(x: Field, y: Field) -> Field:
    """A disc."""
    return np.hypot(x, y) - np.float32(0.92)


def ring(x: Field, y: Field) -> Field:
    """A disc with a hole."""
    return np.abs(np.hypot(x, y) - np.float32(0.66)) - np.float32(0.27)


def square(x: Field, y: Field) -> Field:
    """Upright."""
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.8)


def diamond(x: Field, y: Field) -> Field:
    """Higher than wide."""
    return (np.abs(x) * 1.35 + np.abs(y) - np.float32(0.97)) / np.float32(1.68)


def cross(x: Field, y: Field) -> Field:
    """Two equal bars."""
    near, far = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.maximum(near - np.float32(0.3), far - np.float32(0.92))


def crescent(x: Field, y: Field) -> Field:
    """A disc without another."""
    return np.maximum(np.hypot(x, y) - np.float32(0.92), np.float32(0.74) - np.hypot(x - 0.5, y))


def drop(x: Field, y: Field) -> Field:
    """A disc under a point."""
    disc = np.hypot(x, y - 0.32) - np.float32(0.6)
    point = np.maximum(np.abs(x) * 0.9 - (y + np.float32(0.95)) * 0.436, y - np.float32(0.06))
    return np.minimum(disc, point)


def flower(x: Field, y: Field) -> Field:
    """Five round petals."""
    angle, radius = np.arctan2(x, -y), np.hypot(x, y)
    sector = np.float32(2 * np.pi / 5)
    folded = angle - sector * np.round(angle / sector)
    petal = np.hypot(radius * np.sin(folded), radius * np.cos(folded) - 0.55) - np.float32(0.38)
    return np.minimum(petal, radius - np.float32(0.4))


def polygon(points: list[tuple[float, float]]) -> Callable[[Field, Field], Field]:
    """Return the distance to a polygon that need not be convex (Inigo Quilez's formula)."""
    ends = np.asarray(points, np.float32)
    starts = np.roll(ends, 1, axis=0)

    def distance(x: Field, y: Field) -> Field:
        nearest = np.full(x.shape, np.inf, np.float32)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(starts, ends):
            ex, ey, dx, dy = bx - ax, by - ay, x - ax, y - ay
            along = np.clip((dx * ex + dy * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (dx - ex * along) ** 2 + (dy - ey * along) ** 2)
            # An edge that a ray to the right crosses turns inside out.
            crosses = (ay > y) != (by > y)
            inside ^= crosses & ((ex * dy - ey * dx > 0) == (ey < 0))
        return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)

    return distance


def _around(radii: list[float], start: float = -90.0) -> list[tuple[float, float]]:
    angles = np.deg2rad(start + 360.0 / len(radii) * np.arange(len(radii)))
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles)]


def _heart() -> list[tuple[float, float]]:
    """A half disc around (0.43, -0.38), from the notch to where a straight edge to the tip touches it; mirrored."""
    angles = np.deg2rad(np.linspace(-151.3, 41.1, 14))
    right = [(float(0.43 + 0.49 * np.cos(a)), float(-0.38 + 0.49 * np.sin(a))) for a in angles]
    return [*right, (0.0, 0.87), *((-x, y) for x, y in right[:0:-1])]


_ARROW = [(0.95, 0.0), (0.15, -0.78), (0.15, -0.3), (-0.92, -0.3), (-0.92, 0.3), (0.15, 0.3), (0.15, 0.78)]
_BOLT = [(0.42, -0.95), (-0.78, 0.22), (-0.1, 0.22), (-0.42, 0.95), (0.78, -0.22), (0.1, -0.22)]

DISTANCES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": circle,
    "star": polygon([(x, y + 0.06) for x, y in _around([1.0, 0.42] * 5)]),
    "square": square,
    "triangle": polygon([(0.0, -0.88), (0.95, 0.76), (-0.95, 0.76)]),
    "ring": ring,
    "cross": cross,
    "heart": polygon(_heart()),
    "crescent": crescent,
    "arrow": polygon(_ARROW),
    "hexagon": polygon(_around([0.95] * 6)),
    "diamond": diamond,
    "drop": drop,
    "bolt": polygon(_BOLT),
    "flower": flower,
}
