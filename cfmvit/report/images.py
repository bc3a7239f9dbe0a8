"""Images in: whatever a caller has becomes an RGB picture, large enough to read labels on and small enough to draw on."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfmvit._require import require
from cfmvit.data.images import rgb, upright

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# Pillow's own level, 6, takes over three times as long for files a thirtieth smaller.
PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}
LARGEST = 2048  # pixels of the longer side; drawing on a photograph as it is would take 60 bytes a pixel


def to_picture(image: Any, caller: str) -> Picture:
    """Return an RGB PIL image, turned as a viewer shows it where it has an EXIF orientation.

    Args:
        image: a PIL image, a path, a uint8 array (H, W, 3) or (H, W), or a uint8 tensor (3, H, W).

    Raises:
        TypeError, ValueError: anything else.
    """
    pillow = require("PIL.Image", extra="models")
    if isinstance(image, (str, Path)):
        with pillow.open(image) as file:
            return to_picture(file, f"{caller}: {image}")
    if isinstance(image, pillow.Image):
        return pillow.fromarray(rgb(upright(image), caller))
    if hasattr(image, "detach"):
        array = image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] == 3 else array
    else:
        array = image
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{caller}: image must be a PIL image, a path, an array or a tensor, got {type(image).__name__}"
        )
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            f"{caller}: image must be uint8 of shape (H, W, 3) or (H, W), or a tensor (3, H, W), "
            f"got {array.dtype} of shape {tuple(image.shape)}"
        )
    return pillow.fromarray(np.ascontiguousarray(array)).convert("RGB")


def within(picture: Picture, least: int, most: int = LARGEST) -> tuple[Picture, float]:
    """Scale a picture until its longer side has ``least`` to ``most`` pixels; return it and the factor."""
    pillow = require("PIL.Image", extra="models")
    side = max(picture.size)
    factor = min(max(side, least), max(most, least)) / side
    if factor == 1.0:
        return picture, factor
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, pillow.Resampling.LANCZOS), factor
