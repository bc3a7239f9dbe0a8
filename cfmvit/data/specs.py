"""Where data is: ``kind:place`` strings, resolved to files."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from cfmvit.data.caption_table import SUFFIXES
from cfmvit.data.shard_index import SUFFIX
from cfmvit.data.storage import beside, exists, is_url, matching

PREFIX = "shards:"
CATEGORIES = "categories.json"  # beside shards
_MOST_SHARDS = 10**6
_FORMS = "coco:DIR, lvis:DIR, objects365:DIR, shards:GLOB, annotations.json@image_folder or, for captions, pairs.csv or pairs.tsv"
# Annotation files of a layout, the preferred one first, each with the folder that holds its images.
# LVIS names an image by its COCO url, whose last two parts are a path below DIR: its validation images come from two
# folders of COCO's. Scenes do the same.
_LAYOUTS: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("coco", "captions"): (
        ("annotations/captions_{split}2017.json", "{split}2017"),
        ("annotations/captions_{split}.json", "{split}"),
    ),
    ("coco", "detection"): (
        ("annotations/instances_{split}2017.json", "{split}2017"),
        ("annotations/instances_{split}.json", "{split}"),
    ),
    ("lvis", "captions"): (
        ("annotations/captions_{split}.json", "."),
        ("annotations/captions_{split}2017.json", "{split}2017"),
    ),
    ("lvis", "detection"): (
        ("annotations/lvis_v1_{split}.json", "."),
        ("lvis_v1_{split}.json", "."),
        ("annotations/lvis_v0.5_{split}.json", "."),
        ("lvis_v0.5_{split}.json", "."),
    ),
    # The second version's files name their images images/v1/patch0/NAME, which are unpacked to SPLIT/patch0/NAME.
    ("objects365", "detection"): (
        ("annotations/zhiyuan_objv2_{split}.json", "{split}"),
        ("zhiyuan_objv2_{split}.json", "{split}"),
        ("annotations/objects365_{split}.json", "{split}"),
        ("objects365_{split}.json", "{split}"),
    ),
}
# Where to get what is missing.
_HOMES = {
    "coco": "https://cocodataset.org/#download: 2017 train and val images, train/val annotations",
    "lvis": "https://www.lvisdataset.org/dataset: the v1 annotations; the images are COCO 2017's",
    "objects365": "https://www.objects365.org/download.html",
}


@dataclass(frozen=True)
class Source:
    """Either an annotation file with its folder of images, or shards: paths, or URLs."""

    annotations: Path
    images: Path
    shards: tuple[str, ...] = ()

    @property
    def are_boxes_there(self) -> bool:
        """Whether there is what boxes need: the annotations, or beside shards their categories."""
        return exists(beside(self.shards[0], CATEGORIES)) if self.shards else self.annotations.is_file()


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
    kind, _, place = spec.partition(":")
    if spec.startswith(PREFIX) and place:
        return Source(Path(), Path(), shard_names(place, split))
    if kind in _HOMES and place:
        if (kind, purpose) not in _LAYOUTS:
            raise ValueError(f"data: {kind} has no {purpose}")
        try:
            return _layout(Path(place), _LAYOUTS[kind, purpose], split)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; get it from {_HOMES[kind]}") from error
    annotations, _, images = spec.rpartition("@")
    if annotations.endswith(".json") and images:
        return _checked(Path(annotations), Path(images))
    if purpose == "captions" and (annotations or spec).endswith(SUFFIXES):
        table = Path(annotations or spec)
        return _checked(table, Path(images) if annotations else table.parent)
    raise ValueError(f"data: it must look like {_FORMS}, got {spec!r}")


def _layout(folder: Path, candidates: tuple[tuple[str, str], ...], split: str) -> Source:
    for name, images in candidates:
        path = folder / name.format(split=split)
        if path.is_file():
            return _checked(path, folder / images.format(split=split))
    names = " or ".join(name.format(split=split) for name, _ in candidates)
    raise FileNotFoundError(
        f"data: {folder} must hold {names}" + ("" if folder.is_dir() else "; there is no such folder")
    )


def _checked(annotations: Path, images: Path) -> Source:
    if not annotations.is_file():
        raise FileNotFoundError(f"data: no annotations at {annotations}")
    if not images.is_dir():
        raise FileNotFoundError(f"data: no folder of images at {images}")
    return Source(annotations, images)


def shard_names(pattern: str, split: str) -> tuple[str, ...]:
    """Expand braces and wildcards; a folder, or a URL that ends in /, stands for its ``train-*.tar`` or
    ``val-*.tar``.

    Raises:
        FileNotFoundError: nothing is like a pattern with wildcards.
    """
    if (is_url(pattern) and pattern.endswith("/")) or Path(pattern).is_dir():
        pattern = f"{glob.escape(pattern.rstrip('/'))}/{split}-*.tar"
    found: list[str] = []
    for part in _braces(pattern):
        if not glob.has_magic(part):
            found.append(part)
            continue
        matches = [name for name in matching(part) if not name.endswith(SUFFIX)]
        if not matches:
            raise FileNotFoundError(f"data: no shards match {part}")
        found += matches
    return tuple(dict.fromkeys(found))


def _braces(pattern: str) -> list[str]:
    """Expand ``{000..007}`` and ``{a,b}``."""
    choices: list[list[str]] = []
    total = 1
    for number, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        bounds = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if number % 2 == 0:
            choices.append([part])
        elif bounds:
            first, last = bounds.groups()
            total *= max(0, int(last) - int(first) + 1)
            _check_count(total, pattern)
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(","))
            total *= len(choices[-1])
            _check_count(total, pattern)
    return ["".join(parts) for parts in product(*choices)]


def _check_count(count: int, pattern: str) -> None:
    if not 0 < count <= _MOST_SHARDS:
        raise ValueError(f"data: {pattern} must stand for 1 to {_MOST_SHARDS} shards, got {count}")
