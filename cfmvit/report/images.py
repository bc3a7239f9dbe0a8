"""Images in: whatever a caller has becomes an RGB picture large enough to read labels on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfmvit._require import require
from cfmvit.data.images import rgb, upright

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont


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


def enlarge(picture: Picture, min_side: int) -> tuple[Picture, float]:
    """Scale a picture up until its longer side has ``min_side`` pixels; return it and the factor."""
    pillow = require("PIL.Image", extra="models")
    factor = max(1.0, min_side / max(picture.size))
    if factor == 1.0:
        return picture, factor
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, pillow.Resampling.LANCZOS), factor


def font(size: float) -> FreeTypeFont:
    """Return the font that Pillow ships, at a size in pixels."""
    return require("PIL.ImageFont", extra="models").load_default(size)
