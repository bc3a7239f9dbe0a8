"""Make scenes of photographs: whole or not at all, in the layout and the formats of LVIS and COCO."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cfmvit._io import atomic_dir
from cfmvit.data.categories import Category
from cfmvit.data.detection import DetectionDataset, open_detection
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
from cfmvit.data.photographs.config import PhotographsConfig
from cfmvit.data.photographs.pasting import Photograph, paste
from cfmvit.data.scenes.dealing import deal

# Change it with every change of what is drawn or written, so that older data is made again.
_VERSION = 1
_SPLITS = ("train", "val")


def make_photographs(root: str | os.PathLike[str], config: PhotographsConfig) -> Path:
    """Write the photographs and scenes of ``config`` under ``root``; what is there already from the same config is kept.

    The layout is that of ``cfmvit.data.scenes.make_scenes``: photographs to pretrain on in ``pretrain/``, scenes in ``train/``
    (boxes of base categories) and ``val/`` (boxes of all, of the shards' own ``val`` photographs).

    Returns:
        ``root``.

    Raises:
        FileNotFoundError, ValueError: a config that can't be, shards that are missing or malformed, or fewer photographs in them
            than are asked for; or ``root`` holds something else.
    """
    root = Path(root)
    config.check()
    manifest = manifest_of("make_photographs", _VERSION, config)
    counts = {"pretrain": config.pretrain, "train": config.train.images, "val": config.val.images}
    if is_made(root, manifest, counts):
        return root
    sources = {
        split: open_detection(config.source, split=split, base_only=False, image_size=config.size)
        for split in _SPLITS
    }
    if config.pretrain > len(sources["train"]):
        raise ValueError(
            f"photographs: pretrain must be at most the {len(sources['train'])} of {config.source}, got {config.pretrain}"
        )
    with atomic_dir(root) as staging:
        pictures = {
            name: write_images(staging / name, _scenes(name, sources[name], config)) for name in _SPLITS
        }
        pretrain = write_images(staging / "pretrain", _alone(sources["train"], config))
        _annotate(staging / "annotations", pretrain, pictures, sources["train"].categories, config)
        write_manifest(staging, manifest)
    return root


def _alone(source: DetectionDataset, config: PhotographsConfig) -> Iterator[Picture]:
    """Yield photographs with their captions, as they are pretrained on."""
    chosen = np.random.default_rng((config.seed, 0)).permutation(len(source))[: config.pretrain]
    for index, number in enumerate(chosen.tolist()):
        sample = source.load(number, np.random.default_rng(0))
        name = source.categories[int(sample["labels"][0])].name
        pixels = sample["image"].permute(1, 2, 0).numpy()
        yield Picture(index, encode_jpeg(np.ascontiguousarray(pixels), config.quality), _caption([name]))


def _scenes(name: str, source: DetectionDataset, config: PhotographsConfig) -> Iterator[Picture]:
    """Yield the scenes of a split, with boxes."""
    split, number = getattr(config, name), 1 + _SPLITS.index(name)
    of_category: dict[int, list[int]] = {}
    for index, entry in enumerate(source.entries):
        of_category.setdefault(entry.annotations[0]["category_id"], []).append(index)
    there = [category for category in source.categories if category.id in of_category]
    quota = 0 if name == "train" and not config.novel_boxes else None
    hands = deal(there, split, np.random.default_rng((config.seed, 1, number)), quota)
    for index, hand in enumerate(hands):
        rng = np.random.default_rng((config.seed, 2, number, index))
        photographs = [_photograph(source, int(rng.choice(of_category[category.id]))) for category in hand]
        pixels, boxes = paste(photographs, split, rng)
        placed = [(category, box) for category, box in zip(hand, boxes) if box is not None]
        objects = [Annotation(category.id, box, box[2] * box[3], []) for category, box in placed]
        text = _caption([category.name for category, _ in placed])
        yield Picture(index, encode_jpeg(pixels, config.quality), text, objects)


def _photograph(source: DetectionDataset, number: int) -> Photograph:
    sample = source.load(number, np.random.default_rng(0))
    height, width = sample["valid_size"]
    pixels = sample["image"].permute(1, 2, 0).numpy()[:height, :width]
    return Photograph(np.ascontiguousarray(pixels), sample["boxes"][0].numpy())


def _caption(names: list[str]) -> str:
    return "a photo of " + " and ".join(f"a {name.lower()}" for name in names)


def _annotate(
    folder: Path,
    pretrain: list[Picture],
    pictures: dict[str, list[Picture]],
    categories: list[Category],
    config: PhotographsConfig,
) -> None:
    write_captions(folder / "captions_train.json", "pretrain", pretrain, config.size)
    write_captions(folder / "captions_val.json", "val", pictures["val"], config.val.size)
    rare = rare_threshold(config.train.images * sum(config.train.objects) // 2, len(categories))
    frequency = frequencies(categories, pictures["train"], (rare, 10 * rare))
    entries: list[dict[str, Any]] = [
        {"id": category.id, "name": category.name, "frequency": frequency[category.id]}
        for category in categories
    ]
    for name in _SPLITS:
        write_lvis(
            folder / f"lvis_v1_{name}.json",
            name,
            pictures[name],
            getattr(config, name).size,
            entries,
            unannotated=set(),
        )
