"""Pictures named on a command line: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from cfmvit._require import require

OVERLAY = ".detected.png"


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Return the files that places stand for, each once, in their order.

    Args:
        places: files; folders, which stand for the pictures in them and below; patterns such as ``photos/*.jpg``. Overlays of an
            earlier run are left out of folders and patterns.

    Raises:
        ValueError: a URL.
        FileNotFoundError: no such file or folder, a pattern without a match, or a folder without a picture.
    """
    pil = require("PIL.Image", extra="models")
    known = {suffix for suffix, kind in pil.registered_extensions().items() if kind in pil.OPEN}
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if "://" in str(place):
            raise ValueError(f"detect: pictures must be files here, got the URL {place}: fetch them first")
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file()
            )
            inside = [file for file in inside if not file.name.endswith(OVERLAY)]
            if not inside:
                raise FileNotFoundError(f"detect: no picture in the folder {path}")
            found += inside
        elif path.exists() or not glob.has_magic(str(place)):
            found.append(path)  # one that is not there is named when it is read
        else:
            matches = sorted(Path(match) for match in glob.glob(str(place), recursive=True))
            matches = [match for match in matches if match.is_file() and not match.name.endswith(OVERLAY)]
            if not matches:
                raise FileNotFoundError(f"detect: no file matches {place}, overlays aside")
            found += matches
    once: dict[str, Path] = {}
    for path in found:
        once.setdefault(os.path.abspath(path), path)
    return list(once.values())
