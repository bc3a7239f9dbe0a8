"""Records: one JSON file a run, with the machine on top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = 1
_KEYS = ("schema", "machine", "ceilings", "results")


def ensure_writable(path: Path) -> None:
    """Make the folder of a file; raise OSError if the file can't be written. What it holds stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all: whoever writes may be killed."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read a record, or raise ValueError for what is none."""
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} must be a record of cfmvit bench, got text that is not JSON: {error}"
        ) from None
    if not isinstance(record, dict) or any(key not in record for key in _KEYS):
        raise ValueError(f"{path} must be a record of cfmvit bench, got JSON without {', '.join(_KEYS)}")
    if record["schema"] != SCHEMA:
        raise ValueError(f"{path} must be of schema {SCHEMA}, got {record['schema']}")
    return record


def key(result: dict[str, Any]) -> tuple[str, ...]:
    """Return what tells a result from the others of a record."""
    return tuple(str(result[name]) for name in ("op", "size", "dtype", "device", "pass"))
