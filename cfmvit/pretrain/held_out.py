"""What a model is worth on data that it does not learn from, while it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from cfmvit.data import CaptionDataset, CorruptSample, DetectionDataset, open_captions, open_detection
from cfmvit.data.images import log_corrupt
from cfmvit.data.specs import Source, resolve
from cfmvit.evaluation import class_embeddings, retrieval_recall, topk_accuracy
from cfmvit.evaluation.embeddings import frozen
from cfmvit.evaluation.zero_shot import embed_regions
from cfmvit.models import CFMViT
from cfmvit.pretrain.config import PretrainConfig
from cfmvit.training import Evaluation, World
from cfmvit.training.gradients import check_finite

_BATCH = 64
_TEMPLATES = ("a photo of a {}",)
_REGION_SCALE = (
    2  # images with boxes are this many times as large as those of training, which windows of their grid tile
)


class HeldOut:
    """Zero-shot retrieval and classification of regions on held-out data, spread over the ranks.

    Nothing is drawn at random, so that training goes on as if it had not been called.

    Args:
        captions: not augmented.
        regions: images with boxes, where there are any.
        limit: how many images of each are taken, the first ones.
        workers: processes that load captions' images ahead.
        precision: that of the training.
    """

    def __init__(
        self,
        captions: CaptionDataset,
        regions: DetectionDataset | None,
        model: CFMViT,
        world: World,
        *,
        limit: int,
        workers: int,
        precision: Literal["auto", "fp32", "bf16"],
    ) -> None:
        self._captions, self._regions, self._model, self._world = captions, regions, model, world
        self._limit, self._workers, self._precision = limit, workers, precision
        self._corrupt: set[str] = set()

    def __call__(self) -> dict[str, float]:
        """Evaluate the weights as they are; called on every rank.

        Returns:
            On the main process ``image_to_text_R@1``, ``..@5``, ``..@10`` and the same of ``text_to_image``, over all captions of
            an image; with boxes ``regions_top1``, ``regions_top5``, the same of base and of novel categories, where there are any,
            and ``regions_chance``. Fractions; a tie counts against the model. Nothing on the other ranks.

        Raises:
            NonFiniteLossError: an embedding is NaN or infinite, on whatever rank.
            ValueError: no image can be decoded.
        """
        with frozen(self._model):
            found = self._retrieval()
            if self._regions is not None:
                found |= self._region_accuracy(self._regions)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _embedding(self) -> torch.autocast:
        """Return the precision to embed in; what is compared after that is in float32, where fewer embeddings are tied."""
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._precision == "bf16")

    def _share(self, count: int) -> range:
        return range(self._world.rank, min(count, self._limit), self._world.size)

    def _retrieval(self) -> dict[str, float]:
        nothing = torch.zeros(0, self._model.embed_dim)
        image, text, owner = [nothing], [nothing], []
        with self._world.together(), self._embedding():
            for images, captions in self._batches(self._share(len(self._captions))):
                before = sum(map(len, image))
                owner += [before + place for place, several in enumerate(captions) for _ in several]
                image.append(self._model.encode_image(images.to(self._world.device)).float().cpu())
                flat = [one for several in captions for one in several]
                for start in range(0, len(flat), _BATCH):
                    text.append(self._model.encode_text(flat[start : start + _BATCH]).float().cpu())
        parts = self._gathered(torch.cat(image), torch.cat(text), torch.tensor(owner, dtype=torch.int64))
        with self._world.together():
            if not parts:
                return {}
            all_images, all_texts, owners = zip(*parts)
            first = [sum(map(len, all_images[:rank])) for rank in range(len(all_images))]
            if not any(map(len, all_images)):
                raise ValueError("config: eval_data must have a sound image, got none that can be decoded")
            return retrieval_recall(
                torch.cat(all_images),
                torch.cat(all_texts),
                torch.cat([start + owner for start, owner in zip(first, owners)]),
            )

    def _batches(self, share: range) -> Iterator[tuple[Tensor, list[list[str]]]]:
        """Yield images (b, 3, S, S) and the captions of each; of those that are corrupt each is logged once."""
        loader = torch.utils.data.DataLoader(
            _Whole(self._captions),
            batch_size=_BATCH,
            sampler=share,
            num_workers=self._workers,
            collate_fn=list,
            # Its own generator: the global one is training's.
            generator=torch.Generator(),
        )
        for batch in loader:
            for error in batch:
                if isinstance(error, CorruptSample) and error.path not in self._corrupt:
                    self._corrupt.add(error.path)
                    log_corrupt(error)
            sound = [sample for sample in batch if not isinstance(sample, CorruptSample)]
            if sound:
                yield torch.stack([image for image, _ in sound]), [captions for _, captions in sound]

    def _region_accuracy(self, dataset: DetectionDataset) -> dict[str, float]:
        with self._world.together(), self._embedding():
            embedded = embed_regions(self._model, dataset, self._share(len(dataset)))
        parts = self._gathered(*embedded)
        with self._world.together():
            if not parts:
                return {}
            embeddings, labels = (torch.cat(part) for part in zip(*parts))
            with self._embedding():
                classes = class_embeddings(self._model, [c.name for c in dataset.categories], _TEMPLATES)
            novel = [number for number, category in enumerate(dataset.categories) if category.novel]
            found = topk_accuracy(embeddings, classes.float().cpu(), labels, novel=novel)
            return {f"regions_{name}": value for name, value in found.items()}

    def _gathered(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return what every rank gives, on the main process; nothing on the others."""
        sums = torch.stack([tensor.double().sum() for tensor in tensors])
        check_finite(self._world, sums, "an embedding of the held-out data", [])
        parts = self._world.gather(tensors)
        return parts if self._world.main else []


class _Whole(torch.utils.data.Dataset[Any]):
    """Images with all of their captions, or the error of one that is corrupt: what is raised in a worker changes its type."""

    def __init__(self, captions: CaptionDataset) -> None:
        self._captions = captions

    def __getitem__(self, index: int) -> tuple[Tensor, list[str]] | CorruptSample:
        try:
            return self._captions.load_whole(index)
        except CorruptSample as error:
            return error


def held_out(config: PretrainConfig, model: CFMViT, world: World) -> Evaluation | None:
    """Open the held-out data of a run; None where it asks for no evaluation. It says what is taken.

    Raises:
        FileNotFoundError, ValueError: data that can't be opened, or that the run trains on.
    """
    if config.eval_every is None:
        return None
    size, spec = model.config.image_size, config.eval_data or config.data
    source, trained = resolve(spec, "val", "captions"), resolve(config.data, "train", "captions")
    if source == trained or set(source.shards) & set(trained.shards):
        raise ValueError(f"config: eval_data must be held out, got {spec}, which the run trains on")
    captions = open_captions(
        spec, split="val", image_size=size, augment=False, broken_shards=config.broken_shards
    )
    regions = _regions(spec, source, size * _REGION_SCALE, config)
    print(f"held out: {captions.summary}")
    print(f"held out: {'no boxes, so no region accuracy' if regions is None else regions.summary}")
    evaluate = HeldOut(
        captions,
        regions,
        model,
        world,
        limit=config.eval_images,
        workers=config.workers,
        precision=config.loop.precision,
    )
    return Evaluation(config.eval_every, evaluate)


def _regions(spec: str, captions: Source, size: int, config: PretrainConfig) -> DetectionDataset | None:
    """Open the boxes that come with captions; None where there are none."""
    try:
        source = resolve(spec, "val", "detection")
    except FileNotFoundError:
        return None
    if not source.are_boxes_there or (source == captions and not source.shards):
        return None
    return open_detection(
        spec, split="val", base_only=False, image_size=size, broken_shards=config.broken_shards
    )
