"""Tables of images and captions, as open_clip reads them: columns ``filepath`` and ``title``, and a line for each pair."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from cfmvit.data.annotations import folder_paths

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = tuple(_SEPARATORS)
_IMAGE, _CAPTION = "filepath", "title"


def table_captions(path: Path, folder: Path) -> list[tuple[Path, list[Any]]]:
    """Return the images of a table, each once, with their captions; commas separate a .csv, tabs a .tsv.

    Args:
        folder: which the paths in the table start from, and stay below.

    Raises:
        ValueError: a table without these columns, or that can't be read; an image outside the folder.
        FileNotFoundError: images are missing.
    """
    found: dict[str, list[Any]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=_SEPARATORS[path.suffix], strict=True)
            columns = rows.fieldnames or []
            if _IMAGE not in columns or _CAPTION not in columns:
                raise ValueError(
                    f"its columns must be {_IMAGE} and {_CAPTION}, got {', '.join(columns) or 'none'}"
                )
            for row in rows:
                if None in row:
                    raise ValueError(
                        f"line {rows.line_num} must have {len(columns)} fields, as the first has, and has more"
                    )
                if not row[_IMAGE]:
                    raise ValueError(f"line {rows.line_num} has no {_IMAGE}")
                found.setdefault(row[_IMAGE], []).append(row[_CAPTION])
    except csv.Error as error:
        raise ValueError(f"data: {path} can't be read: line {rows.line_num}: {error}") from error
    except ValueError as error:
        raise ValueError(f"data: {path} can't be read: {error}") from error
    names = {number: [name] for number, name in enumerate(found, start=1)}
    paths = folder_paths(names, folder, f"{path}: the {_IMAGE} of image", path)
    return list(zip(paths.values(), found.values(), strict=True))
