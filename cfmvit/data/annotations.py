"""Reading COCO and LVIS json: checked once, indexed by image."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cfmvit._io import parse_json

Entry = dict[str, Any]


def read_json(
    path: Path, *, optional: Collection[str] = (), **lists: tuple[str, ...]
) -> dict[str, list[Entry]]:
    """Return a json object whose ``lists`` are lists of objects with at least the keys given, each id once.

    Args:
        optional: names of lists that may be absent, which is as if they were empty.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or a list, a key or an id is not as it must be; the message names the file and the entry.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data: no annotations at {path}")
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"data: {path} is not valid json: {error}") from error
    for name, keys in lists.items():
        if name in optional and isinstance(content, dict):
            content.setdefault(name, [])
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(f"data: {path} must hold a list named {name}, as COCO and LVIS files do")
        _check_entries(content[name], f"{path}: {name}", keys)
    return content


def _check_entries(entries: list[Any], where: str, keys: tuple[str, ...]) -> None:
    ids: set[Any] = set()
    for number, entry in enumerate(entries):
        for key in keys:
            if not isinstance(entry, dict) or key not in entry:
                raise ValueError(f"data: {where}[{number}] has no {key}")
        for key in ("id", "image_id", "category_id"):
            if key in keys and (not isinstance(entry[key], int) or isinstance(entry[key], bool)):
                raise ValueError(
                    f"data: {where}[{number}] must have an integer {key}, got {entry[key]!r}: write it without quotes or point"
                )
        if entry["id"] in ids:
            raise ValueError(f"data: {where} has the id {entry['id']} twice")
        ids.add(entry["id"])
        for key in ("width", "height"):
            if key in entry and not (isinstance(entry[key], int) and entry[key] > 0):
                raise ValueError(
                    f"data: {where}[{number}] must have a positive integer {key}, got {entry[key]!r}"
                )


def image_paths(images: list[Entry], folder: Path, source: Path) -> dict[int, Path]:
    """Return the file of each image id.

    A file is looked for by its ``file_name``, then by the last two parts of that, as Objects365 has it, then by the last part of
    its ``coco_url``, then by the last two.

    Raises:
        ValueError: an image without either name, or one whose ``file_name`` leads out of the folder.
        FileNotFoundError: files are missing; the message says how many and names the first.
    """
    names = {image["id"]: _names(image) for image in images}
    for number, candidates in names.items():
        if not candidates:
            raise ValueError(f"data: {source}: image {number} has neither file_name nor coco_url")
    return folder_paths(names, folder, f"{source}: the file_name of image", source)


def folder_paths(names: dict[int, list[str]], folder: Path, what: str, source: Path) -> dict[int, Path]:
    """Return for each number the first of its names that is a file below a folder.

    Args:
        what: words for a number's name, in messages.

    Raises:
        ValueError: a name leads out of the folder.
        FileNotFoundError: files are missing; the message says how many and names the first.
    """
    folders, root = _Folders(), Path(os.path.normpath(folder))
    paths: dict[int, Path] = {}
    missing: list[Path] = []
    for number, found in names.items():
        candidates = [Path(os.path.normpath(folder / name)) for name in found]
        outside = next((path for path in candidates if not path.is_relative_to(root)), None)
        if outside is not None:
            raise ValueError(
                f"data: {what} {number} must stay below {folder}, got {outside}; "
                "name a folder above it if that is meant"
            )
        there = next((path for path in candidates if folders.has(path)), None)
        if there is None:
            missing.append(candidates[-1])
        else:
            paths[number] = there
    if missing:
        raise FileNotFoundError(
            f"data: {source} refers to {len(missing)} of {len(names)} images that are missing; the first is {missing[0]}"
        )
    return paths


def _names(image: Entry) -> list[str]:
    parts = str(image.get("coco_url") or "").split("/")
    name = image.get("file_name")
    names = [name, "/".join(str(name or "").split("/")[-2:]), parts[-1], "/".join(parts[-2:])]
    return list(dict.fromkeys(str(name) for name in names if name))


class _Folders:
    """Whether files exist; each folder is listed once, which is quicker than asking for a hundred thousand files."""

    def __init__(self) -> None:
        self._content: dict[Path, set[str]] = {}

    def has(self, path: Path) -> bool:
        if path.parent not in self._content:
            try:
                self._content[path.parent] = set(os.listdir(path.parent))
            except OSError:
                self._content[path.parent] = set()
        return path.name in self._content[path.parent]


def by_image(annotations: list[Entry], known: dict[int, Any], source: Path) -> dict[int, list[Entry]]:
    """Return the annotations of each image id.

    Raises:
        ValueError: an annotation of an unknown image.
    """
    grouped: dict[int, list[Entry]] = defaultdict(list)
    for annotation in annotations:
        if annotation["image_id"] not in known:
            raise ValueError(
                f"data: {source}: annotation {annotation['id']} refers to unknown image {annotation['image_id']}"
            )
        grouped[annotation["image_id"]].append(annotation)
    return grouped


def is_number(value: Any) -> bool:
    """Whether a value of a json file is a finite number."""
    # Not math.isfinite, which fails on integers beyond every float.
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )
