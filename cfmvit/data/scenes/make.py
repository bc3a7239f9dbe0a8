"""Make the embedded data: draw the scenes in parallel, write them whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from cfmvit._io import atomic_dir
from cfmvit._require import require
from cfmvit.data.lvis_format import Annotation, lvis_json, write_json
from cfmvit.data.scenes.config import ScenesConfig, SplitConfig
from cfmvit.data.scenes.dealing import deal
from cfmvit.data.scenes.layout import compose_scene
from cfmvit.data.scenes.vocabulary import Composition, compositions
from cfmvit.data.scenes.wording import caption

# Change it with every change of what is drawn or written, so that older data is made again.
_VERSION = 2
_SPLITS = ("pretrain", "train", "val")


@dataclass
class _Scene:
    index: int
    categories: list[Composition]


@dataclass
class _Drawn:
    index: int
    jpeg: bytes
    caption: str
    objects: list[Annotation]


def make_scenes(root: str | os.PathLike[str], config: ScenesConfig | None = None) -> Path:
    """Write the scenes of ``config`` under ``root``; what is there already from the same config is kept.

    The layout: ``pretrain/``, ``train/``, ``val/`` with JPEG files; ``annotations/captions_train.json`` (of
    ``pretrain/``), ``captions_val.json``, ``lvis_v1_train.json`` (no boxes of novel categories), ``lvis_v1_val.json``.

    Returns:
        ``root``.

    Raises:
        ValueError: a config that can't be, or ``root`` holds something else than scenes.
    """
    root, config = Path(root), config or ScenesConfig()
    config.check()
    manifest = json.loads(json.dumps({"scenes": _VERSION, "config": asdict(config)}))
    if _is_made(root, manifest):
        return root
    categories = compositions(config.colours, config.textures, config.shapes, config.seed)
    with atomic_dir(root) as staging:
        for number, name in enumerate(_SPLITS):
            _make_split(staging, name, number, categories, config)
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return root


def _is_made(root: Path, manifest: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    path = root / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "scenes" not in found:
            raise ValueError("no scenes")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"make_scenes: root must be a new or empty folder, or hold scenes, got {root} with other content"
        ) from error
    counts = {name: manifest["config"][name]["images"] for name in _SPLITS}
    return found == manifest and all(
        sum(entry.name.endswith(".jpg") for entry in os.scandir(root / name)) == count for name, count in counts.items()
    )


def _make_split(root: Path, name: str, number: int, categories: list[Composition], config: ScenesConfig) -> None:
    split: SplitConfig = getattr(config, name)
    rng = np.random.default_rng((config.seed, 1, number))
    slots = split.images * sum(split.objects) // 2
    # LVIS calls a category rare with at most 10 training images, common with at most 100; small sets scale that down.
    rare = min(10, max(1, slots // (4 * len(categories))))
    quota = None
    if name == "train":
        quota = (rare + 1) // 2 if config.novel_in_train else 0
    hands = deal(categories, split, rng, quota)
    (root / name).mkdir()
    drawn = []
    for scene in _in_parallel(partial(_draw, number, split, config), [_Scene(i, h) for i, h in enumerate(hands)]):
        (root / name / _file(scene.index)).write_bytes(scene.jpeg)
        drawn.append(replace(scene, jpeg=b""))
    images = [
        {
            "id": scene.index + 1,
            "file_name": _file(scene.index),
            "coco_url": f"http://scenes.invalid/{name}/{_file(scene.index)}",
            "width": split.size,
            "height": split.size,
        }
        for scene in drawn
    ]
    folder = root / "annotations"
    if name != "train":
        texts = [{"id": s.index + 1, "image_id": s.index + 1, "caption": s.caption} for s in drawn]
        captions = {"images": images, "annotations": texts}
        write_json(folder / f"captions_{'train' if name == 'pretrain' else name}.json", captions)
    if name != "pretrain":
        content = lvis_json(
            images,
            [scene.objects for scene in drawn],
            [_category(c) for c in categories],
            thresholds=(rare, 10 * rare),
            unannotated={c.id for c in categories if c.novel} if name == "train" else set(),
            rng=rng,
        )
        write_json(folder / f"lvis_v1_{name}.json", content)


def _file(index: int) -> str:
    return f"{index + 1:08d}.jpg"


def _category(category: Composition) -> dict[str, Any]:
    return {
        "id": category.id,
        "name": category.name,
        "synset": f"{category.name.replace(' ', '_')}.n.01",
        "synonyms": [category.name],
        "def": f"a {category.texture} {category.shape} that is {category.colour}",
        "novel": category.novel,
    }


def _draw(number: int, split: SplitConfig, config: ScenesConfig, scene: _Scene) -> _Drawn:
    rng = np.random.default_rng((config.seed, 2, number, scene.index))
    pixels, placed = compose_scene(scene.categories, split, config.min_visible, rng)
    file = BytesIO()
    require("PIL.Image", extra="models").fromarray(pixels).save(
        file, format="JPEG", quality=config.quality, subsampling=0
    )
    objects = [Annotation(item.category.id, item.box(), item.mask) for item in placed]
    return _Drawn(scene.index, file.getvalue(), caption([item.category for item in placed], rng), objects)


def _in_parallel(work: partial[_Drawn], scenes: list[_Scene]) -> Iterator[_Drawn]:
    """Map in order, over all cores where that is worth it; forking is cheap and safe for plain NumPy on Linux alone."""
    workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if workers == 1 or len(scenes) < 256:
        yield from map(work, scenes)
        return
    with warnings.catch_warnings():
        # Python 3.12 warns of forking a process with threads; the children hold no lock of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            results: Iterable[_Drawn] = pool.map(work, scenes, chunksize=64)
            yield from results
