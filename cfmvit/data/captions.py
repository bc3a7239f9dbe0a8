"""Image-text pairs for pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfmvit.data.annotations import by_image, image_paths, read_json
from cfmvit.data.caption_table import SUFFIXES, table_captions
from cfmvit.data.images import decode_rgb
from cfmvit.data.pairs import Pairs, ShardPairs, file_pairs
from cfmvit.data.shards import BrokenShards, open_shards
from cfmvit.data.skipped import MAX_SKIPPED
from cfmvit.data.specs import resolve
from cfmvit.data.transforms import center_crop, random_resized_crop


class CaptionDataset:
    """Images with one or more captions each; with augmentation one of them is drawn at every load, else it is the first.

    Attributes:
        summary: one line: what of the data is taken, and what is left.
    """

    def __init__(
        self,
        summary: str,
        pairs: Pairs,
        image_size: int,
        augment: bool,
        crop_scale: tuple[float, float],
        flip: bool,
    ) -> None:
        self.summary = summary
        self._pairs, self._size, self._augment = pairs, image_size, augment
        self._scale, self._flip = crop_scale, flip

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many consecutive images lie together in a shard, int64 (shards,)."""
        return self._pairs.sizes

    def texts(self, most: int | None = None) -> list[str]:
        """Return the captions of all images, or of ``most`` of them at even distances.

        Those of shards are read here; samples that have none are logged.

        Raises:
            ValueError: none of them has one.
        """
        count = len(self)
        looked_at = count if most is None else min(most, count)
        found = list(self._pairs.texts(number * count // looked_at for number in range(looked_at)))
        if not found:
            raise ValueError(f"data: none of {looked_at} samples has a caption: {self.summary}")
        return found

    def fingerprint(self) -> str:
        """Tell these data from others: of files the names and captions, of shards the names and sizes of all files."""
        return self._pairs.fingerprint()

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return ``image`` uint8 (3, S, S), ``text`` and ``key``.

        Raises:
            CorruptSample: the image can't be decoded, or has no caption.
        """
        content, texts, key = self._pairs.read(index)
        pixels = decode_rgb(content, key)
        if self._augment:
            text = texts[int(rng.integers(len(texts)))]
            pixels = random_resized_crop(pixels, self._size, self._scale, rng, self._flip)
        else:
            text, pixels = texts[0], center_crop(pixels, self._size)
        return {"image": _tensor(pixels), "text": text, "key": key}

    def load_whole(self, index: int) -> tuple[Tensor, list[str]]:
        """Return the central square of an image, uint8 (3, S, S), and all of its captions.

        Raises:
            CorruptSample: as ``load``.
        """
        content, texts, key = self._pairs.read(index)
        return _tensor(center_crop(decode_rgb(content, key), self._size)), texts


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def open_captions(
    spec: str,
    *,
    split: str = "train",
    image_size: int,
    augment: bool = True,
    crop_scale: tuple[float, float] = (0.5, 1.0),
    flip: bool = True,
    broken_shards: BrokenShards = "error",
    max_skipped: int = MAX_SKIPPED,
) -> CaptionDataset:
    """Open image-text pairs.

    Args:
        spec: ``coco:DIR``, ``lvis:DIR`` (captions in COCO's format), ``shards:GLOB`` (an image and a
            .txt, .caption, or .json with a ``caption``, a text or a list), ``captions.json@image_folder``, or a ``pairs.csv`` or
            ``pairs.tsv`` with the columns ``filepath`` and ``title``, whose paths start from its own folder or
            ``@image_folder``.
        image_size: side of the square images.
        augment: random resized crop, and mirroring where ``flip``; else the central square.
        crop_scale: range of the share of the area that a crop keeps.
        broken_shards: ``"skip"`` those that are missing, no whole tar or without a pair, with a count, or take one for an
            ``"error"``.
        max_skipped: how many shards are skipped.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or malformed. Empty captions are dropped and counted in
            the log; it is an error if none is left. Of shards, captions are looked at when they are loaded.
    """
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"open_captions: crop_scale must rise within (0, 1], got {crop_scale}")
    if image_size < 1:
        raise ValueError(f"open_captions: image_size must be positive, got {image_size}")
    source = resolve(spec, split, "captions")
    pairs: Pairs
    if source.shards:
        pairs = ShardPairs(open_shards(source.shards, "captions", broken_shards, max_skipped))
        left = f"{len(pairs)} images in {len(pairs.sizes)} of {len(source.shards)} shards"
    else:
        listed = (
            table_captions(source.annotations, source.images)
            if source.annotations.suffix in SUFFIXES
            else _from_json(source.annotations, source.images)
        )
        pairs, left = file_pairs(listed, spec)
    if not len(pairs):
        raise ValueError(f"open_captions: {spec} must have an image with a caption, got none")
    return CaptionDataset(f"{spec} ({split}): {left}", pairs, image_size, augment, crop_scale, flip)


def _from_json(path: Path, folder: Path) -> list[tuple[Path, list[Any]]]:
    content = read_json(path, images=("id",), annotations=("id", "image_id", "caption"))
    files = image_paths(content["images"], folder, path)
    grouped = by_image(content["annotations"], files, path)
    return [(file, [a["caption"] for a in grouped[number]]) for number, file in files.items()]
