"""Boxes, masks and categories from COCO, LVIS and shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from cfmvit.data.categories import CategorySplit, VocabularyRule
from cfmvit.data.entries import DetectionEntry, Found, file_entries
from cfmvit.data.fingerprint import fingerprint
from cfmvit.data.images import CorruptSample, Orientation, decode_frame, read_sample
from cfmvit.data.masks import decode_mask, has_mask
from cfmvit.data.repeat_factors import repeat_factors
from cfmvit.data.shard_boxes import shard_annotations, shard_entries
from cfmvit.data.shards import BrokenShards, ShardSample
from cfmvit.data.skipped import MAX_SKIPPED
from cfmvit.data.specs import resolve
from cfmvit.data.transforms import Objects, fit, jitter, resize

SizeMismatch = Literal["scale", "skip", "error"]


class DetectionDataset:
    """Images with boxes and masks; ``labels`` number ``categories``.

    Attributes:
        categories: in the order of their ids.
        entries: the images.
        summary: one line: what of the data is taken, and what is left.
    """

    def __init__(
        self,
        entries: list[DetectionEntry],
        split: CategorySplit,
        summary: str,
        annotations_path: Path | None,
        image_size: int,
        augment: bool,
        jitter_scale: tuple[float, float],
        flip: bool,
        size_mismatch: SizeMismatch,
        orientation: Orientation,
    ) -> None:
        self.entries, self.categories, self.summary = entries, split.categories, summary
        self._annotations, self._size, self._augment = annotations_path, image_size, augment
        self._scale, self._flip, self._mismatch = jitter_scale, flip, size_mismatch
        self._orientation: Orientation = orientation
        self._number = {category.id: number for number, category in enumerate(self.categories)}

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def annotations_path(self) -> Path:
        """The ground truth for evaluation; for shards a COCO file that is made here and lives as long as the process."""
        if self._annotations is None:
            self._annotations = shard_annotations(self.entries, self.categories, self._orientation)
        return self._annotations

    def fingerprint(self) -> str:
        """Tell these data from others: names of the images, categories and boxes, not the pixels."""
        return fingerprint(
            (
                entry.source.key if isinstance(entry.source, ShardSample) else entry.source.name,
                entry.image_id,
                [(a["id"], a["category_id"], a["bbox"]) for a in entry.annotations],
            )
            for entry in self.entries
        )

    def repeat_factors(self, threshold: float) -> NDArray[np.float64]:
        """Return how often each image comes in an epoch of repeat-factor sampling; see ``data.repeat_factors``."""
        return repeat_factors(
            [{a["category_id"] for a in entry.annotations} for entry in self.entries], threshold
        )

    @property
    def reading(self) -> str:
        """How images are brought to their size, in words."""
        return f"to {self._size} pixels, orientation {self._orientation}, of another size: {self._mismatch}"

    @property
    def masks(self) -> bool:
        """Whether any object has a mask to learn from."""
        return any(has_mask(annotation) for entry in self.entries for annotation in entry.annotations)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return one sample.

        ``image`` uint8 (3, S, S), ``boxes`` float32 (n, 4) xyxy in it, ``labels`` int64 (n,), ``masks`` uint8
        (n, S, S), ``has_mask`` bool (n,): of the others the mask is empty and not known, ``image_id``, ``key`` (the path),
        ``scale`` (resized / original, before any jitter), ``original_size`` (H, W) of the frame that the annotations are
        in, ``valid_size`` (h, w) before padding, ``remarks``: what was odd, for the log.

        Raises:
            CorruptSample: the image can't be decoded, or has another size than its annotations where that is to skip.
            ValueError: it has another size where that is an error.
        """
        entry = self.entries[index]
        pixels, size, remarks = self._pixels(entry)
        objects, dropped = self._objects(entry, size)
        if size != pixels.shape[:2]:
            objects = _scaled(objects, size, (pixels.shape[0], pixels.shape[1]))
        if self._augment:
            image, objects, valid = jitter(pixels, objects, self._size, self._scale, rng, self._flip)
        else:
            image, objects, valid = fit(pixels, objects, self._size)
        return {
            **self._sample(entry, image, size, valid, [*remarks, *dropped]),
            "boxes": torch.from_numpy(objects.boxes),
            "labels": torch.from_numpy(objects.labels),
            "masks": torch.from_numpy(objects.masks),
            "has_mask": torch.from_numpy(objects.has_mask),
        }

    def load_image(self, index: int) -> dict[str, Any]:
        """Return what ``load`` does of the image alone, not augmented; annotations are not looked at.

        Raises:
            CorruptSample, ValueError: as ``load``.
        """
        entry = self.entries[index]
        pixels, size, remarks = self._pixels(entry)
        image, _, valid = fit(pixels, Objects.none(pixels.shape[0], pixels.shape[1]), self._size)
        return self._sample(entry, image, size, valid, remarks)

    def _sample(
        self,
        entry: DetectionEntry,
        image: NDArray[np.uint8],
        size: tuple[int, int],
        valid: tuple[int, int],
        remarks: Sequence[str],
    ) -> dict[str, Any]:
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "image_id": entry.image_id,
            "key": entry.key,
            "scale": self._size / max(size),
            "original_size": size,
            "valid_size": valid,
            "remarks": list(remarks),
        }

    def _pixels(self, entry: DetectionEntry) -> tuple[NDArray[np.uint8], tuple[int, int], list[str]]:
        """Return an image, the (height, width) that its annotations are for, and what is odd about it."""
        if isinstance(entry.source, ShardSample):
            content = entry.source.read("image")
        else:
            content = read_sample(entry.source)
        pixels, odd = decode_frame(content, entry.key, entry.size, self._orientation)
        found = (pixels.shape[0], pixels.shape[1])
        if entry.size is None or entry.size == found:
            return pixels, found, odd
        text = (
            f"{found[1]} x {found[0]} pixels, where its annotations are for {entry.size[1]} x {entry.size[0]}"
        )
        if self._mismatch == "error":
            raise ValueError(f"data: {entry.key} has {text}")
        if self._mismatch == "skip":
            raise CorruptSample(entry.key, f"it has {text}")
        return pixels, entry.size, [*odd, f"it has {text}: they are scaled"]

    def _objects(self, entry: DetectionEntry, size: tuple[int, int]) -> tuple[Objects, list[str]]:
        height, width = size
        boxes: list[list[float]] = []
        labels: list[int] = []
        masks: list[NDArray[np.uint8] | None] = []
        remarks: list[str] = []
        for annotation in entry.annotations:
            x, y, w, h = annotation["bbox"]
            box = [max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)]
            mask = None
            try:
                if not (box[2] > box[0] and box[3] > box[1]):
                    raise ValueError(
                        f"the box of annotation {annotation['id']} lies outside its {width} x {height} pixels"
                    )
                if has_mask(annotation):
                    mask = decode_mask(annotation, height, width)
            except ValueError as error:
                remarks.append(f"{error}: the annotation is dropped")
                continue
            boxes.append(box)
            labels.append(self._number[annotation["category_id"]])
            masks.append(mask)
        stack: NDArray[np.uint8] = np.zeros((len(boxes), height, width), np.uint8)
        for into, mask in zip(stack, masks):
            if mask is not None:
                into[:] = mask
        objects = Objects(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
            stack,
            np.array([mask is not None for mask in masks], bool),
        )
        return objects, remarks


def _scaled(objects: Objects, size: tuple[int, int], to: tuple[int, int]) -> Objects:
    """Bring objects of a (height, width) frame to pixels of another size."""
    ratio = np.array([to[1] / size[1], to[0] / size[0]] * 2, np.float32)
    masks = np.zeros((len(objects.masks), *to), np.uint8)
    for into, mask in zip(masks, objects.masks):
        into[:] = resize(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), *to)[..., 0] > 127
    return replace(objects, boxes=objects.boxes * ratio, masks=masks)


def open_detection(
    spec: str,
    *,
    split: str = "train",
    base_only: bool,
    image_size: int,
    augment: bool = False,
    jitter_scale: tuple[float, float] = (0.5, 1.5),
    flip: bool = True,
    vocabulary: VocabularyRule = "auto",
    negatives: bool = False,
    size_mismatch: SizeMismatch = "scale",
    orientation: Orientation = "auto",
    broken_shards: BrokenShards = "error",
    max_skipped: int = MAX_SKIPPED,
) -> DetectionDataset:
    """Open a detection data set.

    Args:
        spec: ``coco:DIR``, ``lvis:DIR``, ``shards:GLOB`` (jpg + json with ``category_id`` and ``box_xyxy``, and a
            ``categories.json`` beside them) or ``annotations.json@image_folder``; the json tells COCO and LVIS apart.
        base_only: leave out every box of a novel category, and images without any other box; for training. Without it a list
            of images and categories alone will do, as for predicting on a test set.
        image_size: images are resized so that their longer side has it, and padded to a square.
        augment: large-scale jitter by ``jitter_scale`` (the paper's 0.1 to 2 is for images of 1024 pixels), mirroring
            where ``flip``.
        vocabulary: which categories take part and which of them are novel; see ``split_categories``. Shards have their own.
        negatives: with ``base_only``, keep images that have no annotation at all, as background.
        size_mismatch: of an image that has another size than the file says (as stored, or turned by its EXIF orientation):
            ``"scale"`` its annotations, ``"skip"`` it, or take it for an ``"error"``. The first two are logged and counted.
        orientation: whether annotations of an image with an EXIF orientation are for its pixels as they are ``"stored"`` or for
            the ``"upright"`` image; ``"auto"`` goes by the file's sizes and, where they don't tell, takes it upright, logged
            and counted.
        broken_shards: ``"skip"`` those that are missing, no whole tar or without a box, with a count, or take one for an
            ``"error"``.
        max_skipped: how many shards are skipped.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or malformed. Annotations that can't be used are dropped,
            counted and named in the log; crowds are left out.
    """
    if image_size < 1:
        raise ValueError(f"open_detection: image_size must be positive, got {image_size}")
    if not 0 < jitter_scale[0] <= jitter_scale[1]:
        raise ValueError(f"open_detection: jitter_scale must be positive and rise, got {jitter_scale}")
    if size_mismatch not in get_args(SizeMismatch):
        raise ValueError(
            f"open_detection: size_mismatch must be one of {', '.join(get_args(SizeMismatch))}, got {size_mismatch!r}"
        )
    if orientation not in get_args(Orientation):
        raise ValueError(
            f"open_detection: orientation must be one of {', '.join(get_args(Orientation))}, got {orientation!r}"
        )
    source = resolve(spec, split, "detection")
    if source.shards:
        found = shard_entries(source.shards, broken_shards, max_skipped)
    else:
        found = file_entries(source.annotations, source.images, vocabulary)
    wanted = {category.id for category in found.split.categories if not (base_only and category.novel)}
    empty = {entry.image_id for entry in found.entries if not entry.annotations}
    entries = [
        replace(entry, annotations=[a for a in entry.annotations if a["category_id"] in wanted])
        for entry in found.entries
    ]
    if base_only:
        entries = [entry for entry in entries if entry.annotations or (negatives and entry.image_id in empty)]
    if base_only and not any(entry.annotations for entry in entries):
        raise ValueError(
            f"open_detection: {spec} must have an image with a usable box, got none ({found.split})"
        )
    path = None if source.shards else source.annotations
    return DetectionDataset(
        entries,
        found.split,
        f"{spec} ({split}): {_summary(found, entries)}",
        path,
        image_size,
        augment,
        jitter_scale,
        flip,
        size_mismatch,
        orientation,
    )


def _summary(found: Found, entries: list[DetectionEntry]) -> str:
    boxes = sum(len(entry.annotations) for entry in entries)
    every = sum(len(entry.annotations) for entry in found.entries)
    without = sum(not entry.annotations for entry in entries)
    return (
        f"{found.split}; {len(entries)} of {len(found.entries)} images ({without} without a box); {boxes} boxes, "
        f"{every - boxes} of other categories, {found.usable.crowds} crowds and {found.usable.dropped} malformed ones left out"
    )
