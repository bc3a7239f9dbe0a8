"""Decoding images: any picture becomes uint8 RGB, in the same way wherever it comes from."""

from __future__ import annotations

import io
import logging
import math
import os
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cfmvit._require import require
from cfmvit.data.jpeg import decode_jpeg

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Orientation = Literal["auto", "stored", "upright"]

_LOG = logging.getLogger(__name__)
MOST_BYTES = 512 * 2**20  # of an encoded image
MOST_PIXELS = 2**28  # of a JPEG
_ORIENTATION = 0x0112  # the EXIF tag
_UNDECIDED = (
    "it has the EXIF orientation {} and a size that does not say whether its annotations are for the image as it is stored "
    "or upright: taken upright; orientation=stored does otherwise"
)
_LOGGED: set[tuple[str, int]] = set()
_INTEGER_RANGES = (2**8 - 1, 2**16 - 1, 2**31 - 1)


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
    """Return the image at ``path`` as uint8 (H, W, 3), upright.

    Raises:
        CorruptSample: not an image, truncated, or no longer there.
    """
    return decode_rgb(read_sample(path), str(path))


def read_sample(path: str | Path) -> bytes:
    """Return the content of an image's file.

    Raises:
        CorruptSample: no longer there, or of no use; see ``read_regular``.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise CorruptSample(str(path), str(error)) from error


def read_regular(path: str | Path) -> bytes:
    """Return the content of a regular file of at most ``MOST_BYTES``: a device or a pipe might never end.

    Raises:
        OSError: anything else.
    """
    # Without blocking: opening a pipe would wait for somebody to write into it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        if status.st_size > MOST_BYTES:
            raise OSError(f"it has {status.st_size} bytes, more than {MOST_BYTES}")
        return file.read(MOST_BYTES)


def open_picture(file: IO[bytes]) -> Picture:
    """Open an encoded image as Pillow does, and JPEG of up to ``MOST_PIXELS`` too: phones take more pixels than Pillow allows.

    Raises:
        OSError: not an image, or of too many pixels.
    """
    pil = require("PIL.Image", extra="models")
    try:
        return pil.open(file)
    except pil.DecompressionBombError as error:
        file.seek(0)
        if file.read(2) == b"\xff\xd8":
            file.seek(0)
            picture: Picture = require("PIL.JpegImagePlugin", extra="models").JpegImageFile(file)
            if picture.width * picture.height <= MOST_PIXELS:
                return picture
        raise OSError(f"it has too many pixels: {error}") from error


def decode_rgb(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return an encoded image as uint8 (H, W, 3), turned upright by its EXIF orientation.

    Raises:
        CorruptSample: naming ``name``.
    """
    return decode_frame(content, name, None, "upright")[0]


def decode_frame(
    content: bytes, name: str, size: tuple[int, int] | None, orientation: Orientation
) -> tuple[NDArray[np.uint8], list[str]]:
    """Return an encoded image as uint8 (H, W, 3) in the frame of its annotations, and what is odd about it.

    Args:
        size: (height, width) that annotations are for, where that is known.
        orientation: whether annotations are for the pixels as they are ``"stored"`` or for the image turned ``"upright"`` by
            its EXIF orientation. ``"auto"``: as ``size`` says; where it says nothing (a square, an image upside down),
            upright, as every viewer shows it, and that is odd.

    Raises:
        CorruptSample: naming ``name``.
    """
    try:
        with open_picture(io.BytesIO(content)) as image:
            if orientation == "stored" or _orientation(image) == 1:
                plain = image.format == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) == 1
                pixels = decode_jpeg(content) if plain else None
                return rgb(image, name) if pixels is None else pixels, []
            turned = True if orientation == "upright" else _is_for_upright(image, size)
            odd = [] if turned is not None else [_UNDECIDED.format(_orientation(image))]
            return rgb(image if turned is False else upright(image), name), odd
    # Broken files make Pillow's decoders raise all of these.
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise CorruptSample(name, str(error)) from error


def rgb(image: Picture, name: str) -> NDArray[np.uint8]:
    """Return the pixels of a PIL image, as they are stored, as uint8 (H, W, 3).

    Grey, CMYK and palette images become RGB. Integers of more than 8 bits are scaled by the range of their type, which is
    logged once: 16 bits, or for 32-bit integers the smallest of 8, 16 and 31 bits that holds the image. Floats must lie
    in 0..1.

    Raises:
        ValueError: floats outside 0..1, or negative integers.
    """
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64), 2**16 - 1, "16-bit", name)
    if image.mode == "I":
        values = np.asarray(image).astype(np.float64)
        if values.min(initial=0) < 0:
            raise ValueError(f"{name}: 32-bit pixels must not be negative, got {values.min():.0f}")
        # Older versions of Pillow read PNG's 16 bits into 32.
        tops = [2**16 - 1] if image.format == "PNG" else _INTEGER_RANGES
        return _grey(values, next(top for top in tops if values.max(initial=0) <= top), "32-bit", name)
    if image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        if not (values.min(initial=0) >= 0 and values.max(initial=0) <= 1):
            raise ValueError(
                f"{name}: floating-point pixels must lie in 0..1, got {values.min():.4g} to {values.max():.4g}"
            )
        return _grey(values, 1, "floating-point", name)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def upright(image: Picture) -> Picture:
    """Return an image as a viewer shows it, turned by its EXIF orientation."""
    if _orientation(image) == 1:
        return image
    return require("PIL.ImageOps", extra="models").exif_transpose(image)


def _is_for_upright(image: Picture, size: tuple[int, int] | None) -> bool | None:
    """Whether a frame of (height, width) is that of the turned image rather than of the stored one; None if both fit."""
    if size is None or _orientation(image) < 5:  # from 5 on height and width change places
        return None
    wanted, stored = math.log(size[0] / size[1]), math.log(image.height / image.width)
    if abs(abs(wanted + stored) - abs(wanted - stored)) < 0.02:
        return None
    return abs(wanted + stored) < abs(wanted - stored)


def _orientation(image: Picture) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    # Pillow raises nearly anything on damaged metadata, which is no reason to refuse the pixels.
    except Exception:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _grey(values: NDArray[np.float64], top: int, kind: str, name: str) -> NDArray[np.uint8]:
    _log_scaling(kind, top, name)
    grey = np.rint(values * (255 / top)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _log_scaling(kind: str, top: int, name: str) -> None:
    if (kind, top) not in _LOGGED:
        _LOGGED.add((kind, top))
        _LOG.warning("%s pixels are scaled to 8 bits from 0..%d; the first such image is %s", kind, top, name)
