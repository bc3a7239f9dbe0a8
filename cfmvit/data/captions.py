"""Image-text pairs for pretraining."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfmvit.data.annotations import by_image, image_paths, read_json
from cfmvit.data.fingerprint import fingerprint
from cfmvit.data.images import CorruptSample, decode_rgb, log_corrupt, read_rgb
from cfmvit.data.shards import BrokenShards, ShardSample, index_shards
from cfmvit.data.specs import resolve
from cfmvit.data.transforms import center_crop, random_resized_crop

_LOG = logging.getLogger(__name__)
_CAPTIONS = ("txt", "caption", "json")
Pair = tuple[Path | ShardSample, list[Any]]  # captions as the file has them


class CaptionDataset:
    """Images with one or more captions each; with augmentation one of them is drawn at every load, else it is the first.

    Attributes:
        captions: the captions of each image.
        summary: one line: what of the data is taken, and what is left.
    """

    def __init__(
        self,
        summary: str,
        sources: list[Path | ShardSample],
        captions: list[list[str]],
        image_size: int,
        augment: bool,
        crop_scale: tuple[float, float],
        flip: bool,
    ) -> None:
        self.summary, self.captions = summary, captions
        self._sources, self._size, self._augment = sources, image_size, augment
        self._scale, self._flip = crop_scale, flip

    def __len__(self) -> int:
        return len(self._sources)

    def texts(self) -> list[str]:
        """Return every caption."""
        return [text for texts in self.captions for text in texts]

    def fingerprint(self) -> str:
        """Tell these data from others: names of the images and captions, not the pixels."""
        names = (source.key if isinstance(source, ShardSample) else source.name for source in self._sources)
        return fingerprint(zip(names, self.captions))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return ``image`` uint8 (3, S, S), ``text`` and ``key``.

        Raises:
            CorruptSample: the image can't be decoded.
        """
        pixels, key = self._pixels(index)
        texts = self.captions[index]
        if self._augment:
            text = texts[int(rng.integers(len(texts)))]
            pixels = random_resized_crop(pixels, self._size, self._scale, rng, self._flip)
        else:
            text, pixels = texts[0], center_crop(pixels, self._size)
        return {"image": _tensor(pixels), "text": text, "key": key}

    def load_whole(self, index: int) -> tuple[Tensor, list[str]]:
        """Return the central square of an image, uint8 (3, S, S), and all of its captions.

        Raises:
            CorruptSample: the image can't be decoded.
        """
        pixels, _ = self._pixels(index)
        return _tensor(center_crop(pixels, self._size)), self.captions[index]

    def _pixels(self, index: int) -> tuple[NDArray[np.uint8], str]:
        source = self._sources[index]
        if isinstance(source, ShardSample):
            return decode_rgb(source.read("image"), source.name), source.name
        return read_rgb(source), str(source)


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
) -> CaptionDataset:
    """Open image-text pairs.

    Args:
        spec: ``coco:DIR``, ``lvis:DIR`` (captions in COCO's format), ``shards:GLOB`` (an image and a
            .txt, .caption, or .json with a ``caption``, a text or a list) or ``captions.json@image_folder``.
        image_size: side of the square images.
        augment: random resized crop, and mirroring where ``flip``; else the central square.
        crop_scale: range of the share of the area that a crop keeps.
        broken_shards: ``"skip"`` those that are no whole tar, with a count, or take one for an ``"error"``.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or malformed. Empty captions are dropped and counted in
            the log; it is an error if none is left.
    """
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"open_captions: crop_scale must rise within (0, 1], got {crop_scale}")
    if image_size < 1:
        raise ValueError(f"open_captions: image_size must be positive, got {image_size}")
    source = resolve(spec, split, "captions")
    pairs = (
        _from_shards(source.shards, broken_shards)
        if source.shards
        else _from_file(source.annotations, source.images)
    )
    written = [text for _, texts in pairs for text in texts]
    other = [text for text in written if not isinstance(text, str | None)]
    if other:
        _LOG.warning(
            "dropped %d captions of %s that are no text, the first is %r", len(other), spec, other[0]
        )
    kept = [
        (item, [text.strip() for text in texts if isinstance(text, str) and text.strip()])
        for item, texts in pairs
    ]
    empty = len(written) - len(other) - sum(len(texts) for _, texts in kept)
    if empty:
        _LOG.warning("dropped %d empty captions of %s", empty, spec)
    kept = [(item, texts) for item, texts in kept if texts]
    if not kept:
        raise ValueError(f"open_captions: {spec} must have an image with a caption, got none")
    summary = (
        f"{spec} ({split}): {len(kept)} of {len(pairs)} images; {sum(len(texts) for _, texts in kept)} captions, "
        f"{empty} empty ones and {len(other)} that are no text left out"
    )
    return CaptionDataset(
        summary, [item for item, _ in kept], [t for _, t in kept], image_size, augment, crop_scale, flip
    )


def _from_shards(shards: tuple[Path, ...], broken: BrokenShards) -> list[Pair]:
    pairs: list[Pair] = []
    for sample in index_shards(shards, _CAPTIONS, broken):
        try:
            pairs.append((sample, _captions(sample)))
        except CorruptSample as error:
            log_corrupt(error)
    return pairs


def _captions(sample: ShardSample) -> list[Any]:
    """Return the captions of a sample: its text file, or what its json says."""
    for extension in ("txt", "caption"):
        if extension in sample.members:
            return [sample.read(extension).decode("utf-8", "replace")]
    content = sample.json()
    found = next((content[key] for key in ("caption", "captions", "text") if key in content), None)
    return found if isinstance(found, list) else [found]


def _from_file(path: Path, folder: Path) -> list[Pair]:
    content = read_json(path, images=("id",), annotations=("id", "image_id", "caption"))
    files = image_paths(content["images"], folder, path)
    grouped = by_image(content["annotations"], files, path)
    return [(file, [a["caption"] for a in grouped[number]]) for number, file in files.items()]
