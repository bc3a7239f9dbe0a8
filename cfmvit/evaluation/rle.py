"""COCO's run-length codes, checked before pycocotools decodes them: on a damaged one it may run without end."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_rle(rle: Any, where: str, height: int, width: int) -> None:
    """Raise ``ValueError`` unless ``rle`` is ``{"size": [height, width], "counts": ...}`` of runs that fill the image.

    Args:
        rle: ``counts`` is a compressed str or bytes, or a list of run lengths.
        where: names the entry in the message.
    """

    def wrong(rule: str) -> ValueError:
        return ValueError(f"evaluate_results: {where}: {rule}")

    size = rle.get("size")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise wrong(f"the RLE's size must be the image's [height, width] = [{height}, {width}], got {size!r}")
    try:
        counts = rle["counts"]
        runs = np.asarray(counts, np.int64) if isinstance(counts, list) else _runs(counts)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise wrong(f"the RLE's counts must be run lengths, got {str(rle.get('counts'))[:40]!r}") from error
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise wrong(f"the RLE's runs must fill the image's {height * width} pixels, got {runs.sum()}")


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
