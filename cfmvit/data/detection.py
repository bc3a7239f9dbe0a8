"""Boxes, masks and categories from COCO, LVIS and shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfmvit.data.categories import Category
from cfmvit.data.entries import DetectionEntry, file_entries
from cfmvit.data.images import CorruptSample, decode_rgb, read_rgb
from cfmvit.data.masks import decode_mask
from cfmvit.data.shard_boxes import shard_annotations, shard_entries
from cfmvit.data.shards import ShardSample
from cfmvit.data.specs import resolve
from cfmvit.data.transforms import Objects, fit, jitter


class DetectionDataset:
    """Images with boxes and masks; ``labels`` number ``categories``.

    Attributes:
        categories: in the order of their ids.
        entries: the images.
    """

    def __init__(
        self,
        entries: list[DetectionEntry],
        categories: list[Category],
        annotations_path: Path | None,
        image_size: int,
        augment: bool,
        jitter_scale: tuple[float, float],
        flip: bool,
    ) -> None:
        self.entries, self.categories = entries, categories
        self._annotations, self._size, self._augment = annotations_path, image_size, augment
        self._scale, self._flip = jitter_scale, flip
        self._number = {category.id: number for number, category in enumerate(categories)}

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def annotations_path(self) -> Path:
        """The ground truth for evaluation; for shards a COCO file that is made here and lives as long as the process."""
        if self._annotations is None:
            self._annotations = shard_annotations(self.entries, self.categories)
        return self._annotations

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return one sample.

        ``image`` uint8 (3, S, S), ``boxes`` float32 (n, 4) xyxy in it, ``labels`` int64 (n,), ``masks`` uint8
        (n, S, S), ``image_id``, ``key`` (the path), ``scale`` (resized / original, before any jitter),
        ``original_size`` (H, W), ``valid_size`` (h, w) before padding.

        Raises:
            CorruptSample: the image or a mask can't be decoded.
        """
        entry = self.entries[index]
        if isinstance(entry.source, ShardSample):
            pixels = decode_rgb(entry.source.read("image"), entry.key)
        else:
            pixels = read_rgb(entry.source)
        height, width = pixels.shape[:2]
        objects = self._objects(entry, height, width)
        if self._augment:
            image, objects, valid = jitter(pixels, objects, self._size, self._scale, rng, self._flip)
        else:
            image, objects, valid = fit(pixels, objects, self._size)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "boxes": torch.from_numpy(objects.boxes),
            "labels": torch.from_numpy(objects.labels),
            "masks": torch.from_numpy(objects.masks),
            "image_id": entry.image_id,
            "key": entry.key,
            "scale": self._size / max(height, width),
            "original_size": (height, width),
            "valid_size": valid,
        }

    def _objects(self, entry: DetectionEntry, height: int, width: int) -> Objects:
        boxes = np.array([a["bbox"] for a in entry.annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        # The file may call an image larger than it is.
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            raise CorruptSample(entry.key, f"a box lies outside its {width} x {height} pixels")
        labels = np.array([self._number[a["category_id"]] for a in entry.annotations], np.int64)
        masks: NDArray[np.uint8] = np.zeros((len(boxes), height, width), np.uint8)
        try:
            for mask, annotation in zip(masks, entry.annotations):
                mask[:] = decode_mask(annotation, height, width)
        except ValueError as error:
            raise CorruptSample(entry.key, str(error)) from error
        return Objects(boxes, labels, masks)


def open_detection(
    spec: str,
    *,
    split: str = "train",
    base_only: bool,
    image_size: int,
    augment: bool = False,
    jitter_scale: tuple[float, float] = (0.5, 1.5),
    flip: bool = True,
) -> DetectionDataset:
    """Open a detection data set.

    Args:
        spec: ``coco:DIR``, ``lvis:DIR``, ``shards:GLOB`` (jpg + json with ``category_id`` and ``box_xyxy``, and a
            ``categories.json`` beside them) or ``annotations.json@image_folder``; the json tells COCO and LVIS apart.
        base_only: leave out every box of a novel category (LVIS: frequency r; COCO: the 17 of the open-vocabulary
            split; shards: as their categories say), and images without any other box.
        image_size: images are resized so that their longer side has it, and padded to a square.
        augment: large-scale jitter by ``jitter_scale`` (the paper's 0.1 to 2 is for images of 1024 pixels), mirroring
            where ``flip``.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or malformed. Boxes that can't be used are dropped,
            counted and named in the log; crowds are left out.
    """
    if image_size < 1:
        raise ValueError(f"open_detection: image_size must be positive, got {image_size}")
    if not 0 < jitter_scale[0] <= jitter_scale[1]:
        raise ValueError(f"open_detection: jitter_scale must be positive and rise, got {jitter_scale}")
    source = resolve(spec, split, "detection")
    if source.shards:
        found, categories = shard_entries(source.shards, source.annotations)
    else:
        found, categories = file_entries(source.annotations, source.images)
    wanted = {category.id for category in categories if not (base_only and category.novel)}
    entries = [
        replace(entry, annotations=[a for a in entry.annotations if a["category_id"] in wanted])
        for entry in found
    ]
    if base_only:
        entries = [entry for entry in entries if entry.annotations]
    if not any(entry.annotations for entry in entries):
        raise ValueError(f"open_detection: {spec} must have an image with a usable box, got none")
    path = None if source.shards else source.annotations
    return DetectionDataset(entries, categories, path, image_size, augment, jitter_scale, flip)
