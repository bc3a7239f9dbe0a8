"""Boxes, masks and categories from COCO, LVIS and shards."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfmvit._require import require
from cfmvit.data.annotations import by_image, image_paths, read_json
from cfmvit.data.images import read_rgb
from cfmvit.data.specs import resolve
from cfmvit.data.splits import COCO_BASE, COCO_NOVEL
from cfmvit.data.transforms import Objects, fit, jitter

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Category:
    """A category: its id in the file, its name, LVIS's frequency (r, c, f) where it has one, and whether it is novel."""

    id: int
    name: str
    frequency: str | None
    novel: bool


class DetectionDataset:
    """Images with boxes and masks; ``labels`` number ``categories``.

    Attributes:
        categories: in the order of their ids.
        annotations_path: the file that evaluation needs.
    """

    def __init__(
        self,
        entries: list[tuple[int, Path, list[dict[str, Any]]]],
        categories: list[Category],
        annotations_path: Path,
        image_size: int,
        augment: bool,
        jitter_scale: tuple[float, float],
        flip: bool,
    ) -> None:
        self.categories, self.annotations_path = categories, annotations_path
        self._entries, self._size, self._augment = entries, image_size, augment
        self._scale, self._flip = jitter_scale, flip
        self._number = {category.id: number for number, category in enumerate(categories)}

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return one sample.

        ``image`` uint8 (3, S, S), ``boxes`` float32 (n, 4) xyxy in it, ``labels`` int64 (n,), ``masks`` uint8
        (n, S, S), ``image_id``, ``key`` (the path), ``scale`` (resized / original), ``original_size`` (H, W),
        ``valid_size`` (h, w) before padding.

        Raises:
            CorruptSample: the image can't be decoded.
        """
        image_id, path, annotations = self._entries[index]
        pixels = read_rgb(path)
        height, width = pixels.shape[:2]
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([self._number[a["category_id"]] for a in annotations], np.int64)
        masks = np.zeros((len(annotations), height, width), np.uint8)
        for mask, annotation in zip(masks, annotations):
            mask[:] = decode_mask(annotation, height, width)
        objects = Objects(boxes, labels, masks)
        scale = self._size / max(height, width)
        if self._augment:
            out, objects, valid = jitter(pixels, objects, self._size, self._scale, rng, self._flip)
        else:
            out, objects, valid = fit(pixels, objects, scale, self._size)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(out.transpose(2, 0, 1))),
            "boxes": torch.from_numpy(objects.boxes),
            "labels": torch.from_numpy(objects.labels),
            "masks": torch.from_numpy(objects.masks),
            "image_id": image_id,
            "key": str(path),
            "scale": scale,
            "original_size": (height, width),
            "valid_size": valid,
        }


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
        spec: ``coco:DIR``, ``lvis:DIR`` or ``annotations.json@image_folder``; the json tells COCO and LVIS apart.
        base_only: leave out every box of a novel category (LVIS: frequency r; COCO: the 17 of Bansal et al.), and
            images without any other box.
        image_size: images are resized so that their longer side has it, and padded to a square.
        augment: large-scale jitter by ``jitter_scale``, mirroring where ``flip``.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or malformed. Boxes that are not finite or have no area
            are dropped and named in the log; crowds are left out.
    """
    source = resolve(spec, split, "detection")
    if source.annotations is None or source.images is None:
        raise ValueError(
            f"open_detection: {spec} holds single objects; make scenes of them first: cfmvit.data.compose.compose_scenes"
        )
    content = read_json(source.annotations, "images", "annotations", "categories")
    categories = _categories(content, source.annotations)
    paths = image_paths(content, source.images, source.annotations)
    grouped = by_image(content, paths, source.annotations)
    wanted = {category.id for category in categories if not (base_only and category.novel)}
    known = {entry["id"] for entry in content["categories"]}
    entries = []
    for number, path in paths.items():
        kept = [a for a in grouped[number] if _sound(a, known, source.annotations) and a["category_id"] in wanted]
        if kept or not base_only:
            entries.append((number, path, kept))
    if not entries:
        raise ValueError(f"open_detection: {source.annotations} must have an image with a usable box, got none")
    return DetectionDataset(entries, categories, source.annotations, image_size, augment, jitter_scale, flip)


def decode_mask(annotation: dict[str, Any], height: int, width: int) -> NDArray[np.uint8]:
    """Return (height, width) uint8 from polygons, RLE, or the box where there is no segmentation."""
    codec = require("pycocotools.mask", extra="detection")
    segmentation = annotation.get("segmentation")
    if not segmentation:
        x, y, w, h = annotation["bbox"]
        segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if isinstance(segmentation, list):
        packed = codec.merge(codec.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        packed = codec.frPyObjects(segmentation, height, width)
    else:
        packed = {"size": segmentation["size"], "counts": segmentation["counts"].encode()}
    # A copy: the codec's array claims memory that it does not protect.
    return np.array(_decode(codec, packed))


def _decode(codec: Any, packed: dict[str, Any]) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own __array__ under NumPy 2
        return codec.decode(packed)


def _categories(content: dict[str, Any], source: Path) -> list[Category]:
    entries = sorted(content["categories"], key=lambda entry: entry["id"])
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        raise ValueError(f"data: {source} has a category id twice")
    if any("frequency" in entry for entry in entries):
        return [Category(e["id"], _name(e), e["frequency"], e["frequency"] == "r") for e in entries]
    coco = {**COCO_BASE, **COCO_NOVEL}
    if {coco.get(entry["id"], entry["name"]) == entry["name"] for entry in entries} == {True} and set(COCO_NOVEL) & set(ids):
        return [Category(e["id"], e["name"], None, e["id"] in COCO_NOVEL) for e in entries if e["id"] in coco]
    return [Category(e["id"], _name(e), None, bool(e.get("novel"))) for e in entries]


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).replace("_", " ")


def _sound(annotation: dict[str, Any], known: set[int], source: Path) -> bool:
    if annotation["category_id"] not in known:
        raise ValueError(
            f"data: {source}: annotation {annotation.get('id')} has unknown category {annotation['category_id']}"
        )
    box = annotation["bbox"]
    if len(box) != 4 or not all(math.isfinite(value) for value in box) or box[2] <= 0 or box[3] <= 0:
        _LOG.warning("dropped annotation %s of %s: its box is %s", annotation.get("id"), source, json.dumps(box))
        return False
    return not annotation.get("iscrowd")
