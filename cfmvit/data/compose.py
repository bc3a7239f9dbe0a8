"""Detection scenes of real photographs: photos of shards, each with one known box, pasted onto larger images."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from cfmvit._io import atomic_dir
from cfmvit.data.categories import Category
from cfmvit.data.entries import DetectionEntry
from cfmvit.data.lvis_writer import (
    Annotation,
    Picture,
    encode_jpeg,
    frequencies,
    rare_threshold,
    write_captions,
    write_images,
    write_lvis,
)
from cfmvit.data.manifest import is_made, manifest_of, write_manifest
from cfmvit.data.parallel import in_parallel
from cfmvit.data.pasting import outline, paste_photos
from cfmvit.data.scenes.config import SplitConfig
from cfmvit.data.scenes.dealing import deal
from cfmvit.data.scenes.wording import caption
from cfmvit.data.shard_boxes import shard_entries
from cfmvit.data.specs import resolve

_VERSION = 1
_SPLITS = ("train", "val")


@dataclass
class ComposeConfig:
    """The composed images are a pure function of this and of the shards.

    Attributes:
        shards: folder with ``train-*.tar``, ``val-*.tar`` (jpg + json with ``category_id`` and ``box_xyxy``) and
            ``categories.json``.
        train, val: images of each split; ``scale`` is the longer side of a photo.
        novel_in_train: let photos of novel categories stand in training images; their boxes are never annotated.
    """

    shards: str
    seed: int = 0
    train: SplitConfig = field(
        default_factory=lambda: SplitConfig(images=2000, size=256, objects=(2, 4), scale=(64, 128), tail=0.5)
    )
    val: SplitConfig = field(
        default_factory=lambda: SplitConfig(images=300, size=256, objects=(2, 4), scale=(64, 128))
    )
    novel_in_train: bool = True
    quality: int = 93


def compose_scenes(root: str | os.PathLike[str], config: ComposeConfig) -> Path:
    """Write composed images under ``root`` in LVIS layout; what is there already from the same config is kept.

    Photos do not overlap. A box is that of the object within its photo. Captions name all photos, novel ones too.

    Returns:
        ``root``, which ``lvis:ROOT`` opens.

    Raises:
        ValueError, FileNotFoundError: a config that can't be, shards that can't be read, or ``root`` holds other things.
    """
    root = Path(root)
    for name in _SPLITS:
        split: SplitConfig = getattr(config, name)
        if split.images < 0 or not 1 <= split.objects[0] <= split.objects[1]:
            raise ValueError(
                f"compose_scenes: {name} must have images >= 0 and rising objects >= 1, got {split}"
            )
        if not 8 <= split.scale[0] <= split.scale[1] <= split.size:
            raise ValueError(
                f"compose_scenes: {name}.scale must rise within 8 .. size {split.size}, got {split.scale}"
            )
    manifest = manifest_of("compose_scenes", _VERSION, config)
    if is_made(root, manifest, {name: getattr(config, name).images for name in _SPLITS}):
        return root
    with atomic_dir(root) as staging:
        drawn = {name: _draw_split(staging, name, config) for name in _SPLITS}
        _annotate(
            staging, {name: pictures for name, (pictures, _) in drawn.items()}, drawn["train"][1], config
        )
        write_manifest(staging, manifest)
    return root


def _draw_split(root: Path, name: str, config: ComposeConfig) -> tuple[list[Picture], list[Category]]:
    split: SplitConfig = getattr(config, name)
    source = resolve(f"shards:{config.shards}", name, "detection")
    entries, categories = shard_entries(source.shards, source.annotations)
    photos: dict[int, list[DetectionEntry]] = defaultdict(list)
    for entry in entries:
        photos[entry.annotations[0]["category_id"]].append(entry)
    present = [category for category in categories if photos[category.id]]
    if split.objects[1] > len(present):
        raise ValueError(
            f"compose_scenes: {name}.objects must be at most the {len(present)} categories of {config.shards}, "
            f"got {split.objects}"
        )
    number = _SPLITS.index(name)
    rng = np.random.default_rng((config.seed, 1, number))
    quota = None
    if name == "train":
        quota = (_rare(config, len(categories)) + 1) // 2 if config.novel_in_train else 0
    hands = deal(present, split, rng, quota)

    def draw(choices: list[DetectionEntry]) -> DetectionEntry:
        return choices[int(rng.integers(len(choices)))]

    # Photos are drawn here, so that a worker is sent only those that it needs.
    scenes = [
        (index, [(category, draw(photos[category.id])) for category in hand], draw(entries))
        for index, hand in enumerate(hands)
    ]
    work = partial(_draw, number, split, config)
    return write_images(root / name, in_parallel(work, scenes)), categories


def _draw(
    number: int,
    split: SplitConfig,
    config: ComposeConfig,
    scene: tuple[int, list[tuple[Category, DetectionEntry]], DetectionEntry],
) -> Picture:
    index, hand, behind = scene
    rng = np.random.default_rng((config.seed, 2, number, index))
    pixels, placed = paste_photos([entry for _, entry in hand], behind, split, rng)
    kept = [(category, box) for (category, _), box in zip(hand, placed) if box is not None]
    objects = [Annotation(c.id, box, round(box[2] * box[3], 2), outline(box)) for c, box in kept]
    text = caption([category.name for category, _ in kept], rng)
    return Picture(index, encode_jpeg(pixels, config.quality), text, objects)


def _annotate(
    root: Path, pictures: dict[str, list[Picture]], categories: list[Category], config: ComposeConfig
) -> None:
    rare = _rare(config, len(categories))
    frequency = frequencies(categories, pictures["train"], (rare, 10 * rare))
    entries = [
        {"id": c.id, "name": c.name, "synonyms": [c.name], "frequency": frequency[c.id]} for c in categories
    ]
    folder = root / "annotations"
    for name in _SPLITS:
        size = getattr(config, name).size
        write_captions(folder / f"captions_{name}.json", name, pictures[name], size)
        write_lvis(
            folder / f"lvis_v1_{name}.json",
            name,
            pictures[name],
            size,
            entries,
            unannotated={c.id for c in categories if c.novel} if name == "train" else set(),
        )


def _rare(config: ComposeConfig, categories: int) -> int:
    return rare_threshold(config.train.images * sum(config.train.objects) // 2, categories)
