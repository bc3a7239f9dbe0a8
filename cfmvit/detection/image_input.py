"""Images in the forms that people have them, as the tensor that a detector takes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfmvit._require import require
from cfmvit.data.images import CorruptSample, open_picture, rgb, upright
from cfmvit.data.transforms import resize


@dataclass
class Prepared:
    """One image, resized and padded.

    Attributes:
        pixels: uint8 (3, S, S).
        original_size: (H, W).
        valid_size: (h, w) of the resized image without the padding.
    """

    pixels: Tensor
    original_size: tuple[int, int]
    valid_size: tuple[int, int]


def read_image(image: Any) -> Tensor:
    """Return any image as uint8 RGB (3, H, W), turned as a viewer shows it where it has an EXIF orientation.

    Args:
        image: a PIL image, a path, an array (H, W, 3) uint8 or a tensor (3, H, W) uint8.

    Raises:
        TypeError, ValueError: something else, such as a URL.
        FileNotFoundError: no file at the path.
    """
    if isinstance(image, str) and "://" in image:
        raise ValueError(f"predict: image must be a file here, got the URL {image}: fetch it first")
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"predict: image must be a uint8 tensor (3, H, W), got {image.dtype} {tuple(image.shape)}"
            )
        return _nonempty(image.cpu())
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"predict: image must be a uint8 array (H, W, 3), got {image.dtype} {image.shape}"
            )
        return _nonempty(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    if isinstance(image, (str, os.PathLike)):
        return _read_file(Path(image))
    if isinstance(image, require("PIL.Image", extra="models").Image):
        return _nonempty(torch.from_numpy(rgb(upright(image), "predict: image")).permute(2, 0, 1))
    raise TypeError(
        f"predict: image must be a PIL image, a path, an array (H, W, 3) or a tensor (3, H, W), "
        f"got {type(image).__name__}"
    )


def several(images: Any, what: str) -> list[Any]:
    """Return images as a list.

    Args:
        what: words for them in the message.

    Raises:
        TypeError: a single image, whose letters or rows would pass for several.
    """
    if isinstance(images, str) or not isinstance(images, Iterable) or getattr(images, "ndim", 4) in (2, 3):
        raise TypeError(f"{what} must be a list of images, got a single {type(images).__name__}")
    return list(images)


def prepare(image: Tensor, size: int) -> Prepared:
    """Resize (3, H, W) so that the longer side is ``size``, and pad to a square at the right and at the bottom."""
    height, width = image.shape[-2:]
    scale = size / max(height, width)
    valid = (max(1, round(height * scale)), max(1, round(width * scale)))
    resized = resize(image.permute(1, 2, 0).contiguous().numpy(), *valid)
    pixels = torch.zeros(3, size, size, dtype=torch.uint8)
    pixels[:, : valid[0], : valid[1]] = torch.from_numpy(resized.transpose(2, 0, 1).copy())
    return Prepared(pixels, (height, width), valid)


def _read_file(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"predict: no image at {path}")
    try:
        with path.open("rb") as file, open_picture(file) as picture:
            return _nonempty(torch.from_numpy(rgb(upright(picture), str(path))).permute(2, 0, 1))
    # Broken files make Pillow's decoders raise all of these.
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        hint = (
            "; pip install pillow-heif reads such files" if path.suffix.lower() in (".heic", ".heif") else ""
        )
        raise CorruptSample(str(path), f"{error}{hint}") from error


def _nonempty(image: Tensor) -> Tensor:
    if not image.numel():
        raise ValueError(f"predict: image must not be empty, got shape {tuple(image.shape)}")
    return image
