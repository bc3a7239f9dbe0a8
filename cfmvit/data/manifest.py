"""A manifest says how a folder of data was made, so that the same call finds it again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

_NAME = "manifest.json"


def manifest_of(generator: str, version: int, config: Any) -> dict[str, Any]:
    """Return the manifest of what the function ``generator`` makes of a dataclass ``config``, as json holds it."""
    return json.loads(json.dumps({"generator": generator, "version": version, "config": asdict(config)}))


def is_made(root: Path, manifest: dict[str, Any], images: dict[str, int]) -> bool:
    """Whether ``root`` already holds what the manifest says, with so many images in each subfolder.

    Raises:
        ValueError: it holds something that no generator made, which must not be overwritten.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _NAME).read_text(encoding="utf-8"))
        known = isinstance(found, dict) and "generator" in found
    except (OSError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"{manifest['generator']}: root must be a new or empty folder, or one made before, "
            f"got {root} with other content"
        )
    return found == manifest and all(
        (root / name).is_dir() and sum(file.endswith(".jpg") for file in os.listdir(root / name)) == count
        for name, count in images.items()
    )


def write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Write it; the last file of a folder that is made."""
    (root / _NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
