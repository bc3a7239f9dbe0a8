"""COCO's run-length codes, checked before pycocotools decodes them: on a damaged one it may run without end."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np


def check_rle(rle: Any, where: str, height: int, width: int) -> None:
    """Raise ``ValueError`` unless ``rle`` is ``{"size": [height, width], "counts": ...}`` of runs that fill the image.

    Args:
        rle: ``counts`` is a compressed str or bytes, or a list of run lengths.
        where: names the entry in the message.
    """

    def wrong(rule: str) -> ValueError:
        return ValueError(f"{where}: {rule}")

    size = rle.get("size")
    # Equal is not enough: pycocotools takes 60 and not 60.0.
    if not is_size(size) or list(size) != [height, width]:
        raise wrong(f"the RLE's size must be the image's [height, width] = [{height}, {width}], got {size!r}")
    try:
        counts = rle["counts"]
        runs = _listed(counts) if isinstance(counts, list) else _runs(counts)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise wrong(f"the RLE's counts must be run lengths, got {str(rle.get('counts'))[:40]!r}") from error
    # Each within the image, so that the sum can't overflow.
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise wrong(f"the RLE's runs must fill the image's {height * width} pixels, got {runs.sum()}")


def is_size(size: Any) -> bool:
    """Whether ``size`` is two positive integers."""
    return isinstance(size, (list, tuple)) and len(size) == 2 and all(_is_integer(s) and s > 0 for s in size)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _listed(counts: list[Any]) -> np.ndarray:
    if not all(map(_is_integer, counts)):
        raise TypeError
    return np.asarray(counts, np.int64)


def _runs(counts: str | bytes) -> np.ndarray:
    """Decode groups of 5 bits, lowest first, with a bit for "more" and a sign; from the fourth on, differences to the
    last but one (COCO API, rleFrString)."""
    codes = (
        np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(
            np.int64
        )
        - 48
    )
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError
    last = (codes & 32) == 0
    number = np.concatenate([[0], np.cumsum(last)[:-1]])
    first = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(codes)) - first[number]
    if place.max() > 11:
        raise ValueError
    runs = np.zeros(number[-1] + 1, np.int64)
    np.add.at(runs, number, (codes & 31) << (5 * place))
    negative = (codes[last] & 16) != 0
    runs -= np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
