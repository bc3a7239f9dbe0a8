"""Make the embedded data: draw the scenes in parallel, write them whole or not at all."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cfmvit._io import atomic_dir
from cfmvit.data.lvis_writer import (
    Annotation,
    Picture,
    encode_jpeg,
    encode_mask,
    frequencies,
    rare_threshold,
    write_captions,
    write_images,
    write_lvis,
)
from cfmvit.data.manifest import is_made, manifest_of, write_manifest
from cfmvit.data.parallel import in_parallel
from cfmvit.data.scenes.config import ScenesConfig, SplitConfig
from cfmvit.data.scenes.dealing import deal
from cfmvit.data.scenes.layout import compose_scene
from cfmvit.data.scenes.vocabulary import Composition, compositions
from cfmvit.data.scenes.wording import caption

# Change it with every change of what is drawn or written, so that older data is made again.
_VERSION = 3
_SPLITS = ("pretrain", "train", "val")


def make_scenes(root: str | os.PathLike[str], config: ScenesConfig | None = None) -> Path:
    """Write the scenes of ``config`` under ``root``; what is there already from the same config is kept.

    The layout is that of LVIS: ``pretrain/``, ``train/``, ``val/`` with JPEG files; ``annotations/`` with
    ``captions_train.json`` (of ``pretrain/``), ``captions_val.json``, ``lvis_v1_train.json`` (no boxes of novel
    categories but for an oracle) and ``lvis_v1_val.json``. The same config gives the same bytes.

    Returns:
        ``root``.

    Raises:
        ValueError: a config that can't be, or ``root`` holds something else than scenes.
    """
    root, config = Path(root), config or ScenesConfig()
    config.check()
    manifest = manifest_of("make_scenes", _VERSION, config)
    if is_made(root, manifest, {name: getattr(config, name).images for name in _SPLITS}):
        return root
    categories = compositions(config.colours, config.textures, config.shapes, config.seed)
    with atomic_dir(root) as staging:
        pictures = {name: _draw_split(staging, name, categories, config) for name in _SPLITS}
        _annotate(staging, pictures, categories, config)
        write_manifest(staging, manifest)
    return root


def _draw_split(root: Path, name: str, categories: list[Composition], config: ScenesConfig) -> list[Picture]:
    split: SplitConfig = getattr(config, name)
    number = _SPLITS.index(name)
    quota = None
    if name == "train" and not config.novel_boxes:
        quota = (_rare(config) + 1) // 2 if config.novel_in_train else 0
    hands = deal(categories, split, np.random.default_rng((config.seed, 1, number)), quota)
    work = partial(_draw, number, split, config)
    return write_images(root / name, in_parallel(work, list(enumerate(hands))))


def _draw(
    number: int, split: SplitConfig, config: ScenesConfig, scene: tuple[int, list[Composition]]
) -> Picture:
    index, categories = scene
    rng = np.random.default_rng((config.seed, 2, number, index))
    pixels, placed = compose_scene(categories, split, config.min_visible, rng)
    objects = []
    if _SPLITS[number] != "pretrain":
        for item in placed:
            area = int(np.count_nonzero(item.mask))
            objects.append(Annotation(item.category.id, item.box(), area, encode_mask(item.mask)))
    text = caption([item.category.name for item in placed], rng)
    return Picture(index, encode_jpeg(pixels, config.quality), text, objects)


def _annotate(
    root: Path, pictures: dict[str, list[Picture]], categories: list[Composition], config: ScenesConfig
) -> None:
    folder = root / "annotations"
    write_captions(folder / "captions_train.json", "pretrain", pictures["pretrain"], config.pretrain.size)
    write_captions(folder / "captions_val.json", "val", pictures["val"], config.val.size)
    rare = _rare(config)
    frequency = frequencies(categories, pictures["train"], (rare, 10 * rare))
    entries = [_entry(category, frequency[category.id]) for category in categories]
    for name in _SPLITS[1:]:
        write_lvis(
            folder / f"lvis_v1_{name}.json",
            name,
            pictures[name],
            getattr(config, name).size,
            entries,
            unannotated={c.id for c in categories if c.novel and name == "train" and not config.novel_boxes},
        )


def _rare(config: ScenesConfig) -> int:
    slots = config.train.images * sum(config.train.objects) // 2
    return rare_threshold(slots, config.colours * config.textures * config.shapes)


def _entry(category: Composition, frequency: str) -> dict[str, Any]:
    return {
        "id": category.id,
        "name": category.name,
        "synset": f"{category.name.replace(' ', '_')}.n.01",
        "synonyms": [category.name],
        "def": f"a {category.texture} {category.shape} that is {category.colour}",
        "frequency": frequency,
    }
