"""Lists of COCO's annotations and results as columns, read natively; what the reader does not know goes through Python."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE, SCORE, AREA, CATEGORY = (
    0,
    5,
    5,
    6,
)  # columns of rows; results have a score where annotations have an area
BOX = slice(1, 5)
_WINDOW = 1 << 16


@dataclass(frozen=True)
class Known:
    """Images and categories by ascending id; rows hold their places in this order.

    Attributes:
        sizes: (I, 2) height and width, 0 where the file does not say both.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, images: dict[int, dict[str, Any]], categories: dict[int, dict[str, Any]]) -> Known:
        """Take them from a file's entries by id."""
        image_ids = sorted(images)
        sizes = [[images[key].get(side, 0) for side in ("height", "width")] for key in image_ids]
        known = np.array(sizes, np.int64).reshape(-1, 2)
        known[(known == 0).any(axis=1)] = 0
        return cls(np.array(image_ids, np.int64), np.array(sorted(categories), np.int64), known)


@dataclass
class Columns:
    """n entries of a list.

    Attributes:
        rows: (n, 7) float64 image, x, y, width, height, score or area, category.
        crowd: (n,) uint8, of annotations.
        boxless: (m,) results without a box of their own: it is that of the mask, and
        boxless_areas: (m,) is how many pixels that has.
        mask_areas: (n,) pixels of results, and
        mask_spans: (n, 2) where a segmentation's json begins, and its length; both where masks are evaluated.
        broken_at: byte at which the text stops being a json list, or -1.
    """

    rows: NDArray[np.float64]
    crowd: NDArray[np.uint8]
    mask_areas: NDArray[np.float64]
    mask_spans: NDArray[np.int64]
    boxless: NDArray[np.int64]
    boxless_areas: NDArray[np.float64]
    broken_at: int


def read_columns(
    source: Path | bytes,
    known: Known,
    *,
    truth: bool,
    boxes: bool,
    masks: bool,
    put_right: Callable[[Columns, int, Any], None],
) -> Columns:
    """Read a json list.

    Args:
        source: a file or its content.
        truth: it holds annotations, else results.
        put_right: is given each entry that the reader does not take for right, as (columns, number, entry): it raises, or
            puts what is right into the columns.

    Raises:
        ImportError: the native reader is not built.
        OSError: the file can't be read.
    """
    found = native_reader().read_coco_entries(
        source if isinstance(source, bytes) else str(source),
        known.image_ids,
        np.ascontiguousarray(known.sizes[:, 0]),
        np.ascontiguousarray(known.sizes[:, 1]),
        known.category_ids,
        truth,
        boxes,
        masks,
    )
    offsets, odd = found.pop("offsets"), found.pop("odd")
    columns = Columns(**found)
    for number in odd.tolist() if columns.broken_at < 0 else ():
        put_right(columns, number, _entry(source, int(offsets[number])))
    return columns


def native_reader() -> ModuleType:
    """Return the native module that reads COCO's lists, which knows no torch.

    Raises:
        ImportError: it is not built.
    """
    try:
        return importlib.import_module("cfmvit._coco")
    except ImportError as error:
        raise ImportError(
            f"evaluate_results: the native reader can't be imported ({error}); build it with: pip install ."
        ) from error


def _entry(source: Path | bytes, offset: int) -> Any:
    """Parse one value of a text, of which it is known that it is whole."""
    size = _WINDOW
    while True:
        part = read_part(source, offset, size)
        try:
            return json.JSONDecoder().raw_decode(part.decode("utf-8", "replace"))[0]
        except json.JSONDecodeError:
            if len(part) < size:
                raise
            size *= 4


def read_part(source: Path | bytes, offset: int, size: int) -> bytes:
    """Return ``size`` bytes of a file or of its content; fewer where it ends."""
    if isinstance(source, bytes):
        return source[offset : offset + size]
    with source.open("rb") as file:
        file.seek(offset)
        return file.read(size)
