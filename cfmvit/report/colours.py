"""Colours: one for each category, always the same, and the ramp of heat maps."""

from __future__ import annotations

import colorsys
import hashlib

import numpy as np

Colour = tuple[int, int, int]

# Nine points of matplotlib's inferno (CC0): perceptually even, dark for low, legible without colour vision.
_INFERNO = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ],
    dtype=np.float32,
)


def category_colour(name: str, *, vivid: bool) -> Colour:
    """Colour of a category, a pure function of its name.

    Args:
        vivid: bright and saturated (novel categories), else muted.
    """
    digest = hashlib.sha256(name.encode()).digest()
    hue = int.from_bytes(digest[:4], "big") / 2**32
    lightness, saturation = (0.60, 1.0) if vivid else (0.72, 0.38)
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on ``colour`` (relative luminance of WCAG)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (16, 16, 18) if luminance > 0.18 else (255, 255, 255)


def heat(values: np.ndarray) -> np.ndarray:
    """Map values in [0, 1] of any shape to uint8 colours (..., 3)."""
    position = np.clip(values, 0, 1) * (len(_INFERNO) - 1)
    points = np.arange(len(_INFERNO))
    channels = [np.interp(position, points, _INFERNO[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
