"""Reading COCO and LVIS json: checked once, indexed by image."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Return a json object that has all of ``keys``, each a list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or a key is missing; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data: no annotations at {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"data: {path} is not valid json: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"data: {path} must hold lists named {', '.join(keys)}; missing: {', '.join(missing)}")
    return content


def image_paths(content: dict[str, Any], folder: Path, source: Path) -> dict[int, Path]:
    """Return the file of each image id.

    Raises:
        ValueError: an id twice.
        FileNotFoundError: files are missing; the message says how many and names the first.
    """
    present = {path.name for path in folder.iterdir()}
    paths: dict[int, Path] = {}
    for image in content["images"]:
        if image["id"] in paths:
            raise ValueError(f"data: {source} has image id {image['id']} twice")
        # LVIS names images by their COCO url alone.
        paths[image["id"]] = folder / Path(image.get("file_name") or image["coco_url"]).name
    missing = [path for path in paths.values() if path.name not in present]
    if missing:
        raise FileNotFoundError(f"data: {source} refers to {len(missing)} missing images, the first is {missing[0]}")
    return paths


def by_image(content: dict[str, Any], known: dict[int, Any], source: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations of each image id.

    Raises:
        ValueError: an annotation of an unknown image.
    """
    grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["image_id"] not in known:
            raise ValueError(
                f"data: {source}: annotation {annotation.get('id')} refers to unknown image {annotation['image_id']}"
            )
        grouped[annotation["image_id"]].append(annotation)
    return grouped
