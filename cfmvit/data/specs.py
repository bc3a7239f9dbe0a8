"""Where data is: ``kind:place`` strings, resolved to files."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

_FORMS = "coco:DIR, lvis:DIR, shards:GLOB or annotations.json@image_folder"
_FILES = {
    ("coco", "captions"): ("annotations/captions_{split}2017.json", "{split}2017"),
    ("coco", "detection"): ("annotations/instances_{split}2017.json", "{split}2017"),
    ("lvis", "captions"): ("annotations/captions_{split}.json", "{split}"),
    ("lvis", "detection"): ("annotations/lvis_v1_{split}.json", "{split}"),
}


@dataclass(frozen=True)
class Source:
    """Either an annotation file with its folder of images, or shards."""

    annotations: Path | None
    images: Path | None
    shards: tuple[Path, ...] = ()


def resolve(spec: str, split: str, purpose: str) -> Source:
    """Find the files of a spec.

    Args:
        spec: see the package's documentation.
        split: ``train`` or ``val``.
        purpose: ``captions`` or ``detection``.

    Raises:
        ValueError: a spec of no known form.
        FileNotFoundError: naming what is missing.
    """
    if split not in ("train", "val"):
        raise ValueError(f"data: split must be train or val, got {split!r}")
    kind, colon, place = spec.partition(":")
    if colon and kind == "shards":
        return Source(None, None, _shards(place, split))
    if colon and kind in ("coco", "lvis"):
        annotations, images = (Path(place) / name.format(split=split) for name in _FILES[kind, purpose])
        # Scenes keep the captioned images in a folder of their own.
        if purpose == "captions" and split == "train" and (Path(place) / "pretrain").is_dir():
            images = Path(place) / "pretrain"
        return _checked(annotations, images)
    annotations, at, images = spec.rpartition("@")
    if at and annotations.endswith(".json"):
        return _checked(Path(annotations), Path(images))
    raise ValueError(f"data: it must look like {_FORMS}, got {spec!r}")


def _checked(annotations: Path, images: Path) -> Source:
    if not annotations.is_file():
        raise FileNotFoundError(f"data: no annotations at {annotations}")
    if not images.is_dir():
        raise FileNotFoundError(f"data: no folder of images at {images}")
    return Source(annotations, images)


def _shards(pattern: str, split: str) -> tuple[Path, ...]:
    """Expand braces and wildcards; a folder stands for its ``train-*.tar`` or ``val-*.tar``."""
    if Path(pattern).is_dir():
        pattern = str(Path(pattern) / f"{split}-*.tar")
    found = sorted({Path(path) for part in _braces(pattern) for path in glob.glob(part)})
    if not found:
        raise FileNotFoundError(f"data: no shards match {pattern}")
    return tuple(found)


def _braces(pattern: str) -> list[str]:
    """Expand ``{000..007}`` and ``{a,b}``."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[list[str]] = []
    for number, part in enumerate(parts):
        bounds = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if number % 2 == 0:
            choices.append([part])
        elif bounds:
            first, last = bounds.groups()
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(","))
    return ["".join(parts) for parts in product(*choices)]
