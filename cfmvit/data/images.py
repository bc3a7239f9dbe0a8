"""Decoding images."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require

_LOG = logging.getLogger(__name__)


class CorruptSample(ValueError):
    """A sample that can't be read; training skips it and goes on.

    Attributes:
        path: the file (and the member of it).
        reason: what is wrong.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is corrupt or not an image: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[CorruptSample], tuple[str, str]]:
        return CorruptSample, (self.path, self.reason)


def log_corrupt(error: CorruptSample) -> None:
    """Log that a sample is skipped, and why."""
    _LOG.warning("skipped a corrupt sample: %s (%s)", error.path, error.reason)


def log_corrupt_count(count: int, total: int) -> None:
    """Log how many samples were skipped, if any were."""
    if count:
        _LOG.warning("skipped %d of %d samples, which are corrupt", count, total)


def read_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Return the image at ``path`` as uint8 (H, W, 3).

    Raises:
        CorruptSample: not an image, truncated, or no longer there.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CorruptSample(str(path), str(error)) from error
    return decode_rgb(content, str(path))


def decode_rgb(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return an encoded image as uint8 (H, W, 3).

    Grey, CMYK and palette images become RGB. An EXIF orientation is left alone: boxes of COCO and LVIS refer to the
    pixels as they are stored.

    Raises:
        CorruptSample: naming ``name``.
    """
    pil = require("PIL.Image", extra="models")
    try:
        with pil.open(io.BytesIO(content)) as image:
            image.load()
            if "transparency" in image.info:
                image = image.convert("RGBA")
            return np.array(image.convert("RGB"))
    # Broken files make Pillow's decoders raise all of these.
    except (OSError, ValueError, SyntaxError, EOFError, pil.DecompressionBombError) as error:
        raise CorruptSample(name, str(error)) from error
