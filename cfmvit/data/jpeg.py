"""JPEG by torchcodec where it is installed: the pixels of Pillow, sooner."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)


def decode_jpeg(content: bytes) -> NDArray[np.uint8] | None:
    """Return a JPEG without an EXIF orientation, which torchcodec would turn, as uint8 (H, W, 3); None without torchcodec.

    Raises:
        ValueError: it is damaged.
    """
    decode = _decoder()
    if decode is None:
        return None
    import torch  # here: reports, which have pictures, are written without it

    try:
        pixels: NDArray[np.uint8] = decode(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except RuntimeError as error:
        # After the place in the decoder's source comes what is wrong.
        raise ValueError(str(error).rpartition(", ")[2]) from error
    return pixels


@cache
def _decoder() -> Callable[[Any], Any] | None:
    try:
        decode = importlib.import_module("torchcodec.decoders").decode_jpeg
    except ModuleNotFoundError:
        return None
    except (
        AttributeError,
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # older, for another torch, or without its libraries
        _LOG.warning("torchcodec can't be used, Pillow decodes: %s", str(error).strip().splitlines()[0])
        return None
    return lambda encoded: decode(encoded).permute(1, 2, 0).numpy()
