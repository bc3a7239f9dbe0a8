"""The open-vocabulary detector around a pretrained CFM-ViT."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmvit.data.transforms import center_crop
from cfmvit.detection.backbone import finetuned_attention, frozen_attention
from cfmvit.detection.box_masks import BoxMasks
from cfmvit.detection.checkpoint import load_detector, save_detector, shipped_checkpoint
from cfmvit.detection.config import DetectorConfig
from cfmvit.detection.encoded import Encoded
from cfmvit.detection.ensemble import frozen_embeddings, region_scores, score_parts
from cfmvit.detection.image_input import Prepared, prepare, read_image, several
from cfmvit.detection.postprocess import pick, to_original
from cfmvit.detection.proposals import ProposalNetwork
from cfmvit.detection.pyramid import SimplePyramid
from cfmvit.detection.region_heads import Aligner, BoxHead, MaskHead, box_loss, decode_boxes, mask_loss
from cfmvit.detection.result import Detections
from cfmvit.detection.sampling import check_truth, sample_regions
from cfmvit.detection.vocabulary import TextBank, Vocabulary, Words, clean_labels
from cfmvit.training.precision import choose_precision
from cfmvit.training.world import World

Precision = Literal["auto", "fp32", "bf16"]

_BOXES, _MASKS = (
    256,
    64,
)  # regions that a head sees at a time; what is in it of all of them would not fit a cache


class Detector(nn.Module):
    """Find objects named by free text (CFM-ViT section 3.3).

    Args:
        model: a pretrained CFM-ViT; it becomes part of the detector, frozen.
        config: sizes and options.

    Attributes:
        model: the frozen CFM-ViT: its text tower makes the classifier, its image tower the VLM score.
        visual: the finetuned image tower; None when the backbone is frozen, then ``model.visual`` serves both.
        temperature: ``t`` in ``logits = cos / (0.01 * t)``.
    """

    def __init__(self, model: Any, config: DetectorConfig) -> None:
        super().__init__()
        tower = model.visual
        if model.text is None:
            raise ValueError(
                f"config: the detector's model must have a text tower, and {model.config.name} has none: pretrain from it first"
            )
        patch = tower.patch_size
        if config.image_size % patch:
            near = max(1, round(config.image_size / patch)) * patch
            raise ValueError(
                f"config: detector.image_size must be a multiple of the patch size {patch}, {near} for instance, got "
                f"{config.image_size}"
            )
        self.config = config
        self.model = model.requires_grad_(False).eval()
        self.visual = None if config.freeze_backbone else copy.deepcopy(tower).requires_grad_(True)
        self._frozen = frozen_attention(tower.depth, config.window)
        self._finetuned = finetuned_attention(tower.depth, config.window, config.global_blocks)
        self.pyramid = SimplePyramid(tower.width, tower.patch_size, config.pyramid)
        self.proposals = ProposalNetwork(config.pyramid.channels, self.pyramid.strides, config.proposals)
        self.box_head = BoxHead(config.pyramid.channels, model.embed_dim, config.heads)
        self.mask_head = MaskHead(config.pyramid.channels, config.heads) if config.heads.mask else None
        self._align = Aligner(tuple(self.pyramid.strides), config.heads.sampling_ratio)
        self.temperature = nn.Parameter(torch.ones(()))
        self._bank = TextBank(model, config.templates)
        self._predicting, self._mode = 0, True

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.temperature.device

    def train(self, mode: bool = True) -> Detector:
        """Switch the trained parts; the frozen model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def vocabulary(self, labels: Words) -> Vocabulary:
        """Return the text matrix of labels, each encoded once in the detector's life; a saved one says whose it is.

        A ``Vocabulary`` comes back as it is.

        Raises:
            TypeError, ValueError: bad labels, or a ``Vocabulary`` of another text tower or of other prompts.
        """
        text = self._bank.vocabulary(labels)
        return text if isinstance(labels, Vocabulary) else replace(text, source=self.text_source())

    def text_source(self) -> str:
        """Return the hash of the text tower and the prompts: what a saved ``Vocabulary`` of this detector has as its ``source``."""
        return self._bank.source()

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Any]) -> Tensor:
        """Embed whole pictures, as ``predict`` takes them, by the frozen model: (n, E) float32 of unit length.

        Raises:
            TypeError, ValueError, FileNotFoundError: as ``predict`` of an image; no picture.
        """
        pictures = several(pictures, "embed_pictures: pictures")
        if not pictures:
            raise ValueError("embed_pictures: pictures must be one at least, got none")
        size = self.model.config.image_size
        squares = [center_crop(read_image(p).permute(1, 2, 0).contiguous().numpy(), size) for p in pictures]
        pixels = torch.stack([torch.from_numpy(square.transpose(2, 0, 1).copy()) for square in squares])
        return self.model.encode_image(pixels.to(self.device)).float()

    def losses(
        self,
        batch: dict[str, Any],
        text: Tensor,
        generators: list[torch.Generator],
        world: World | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of a batch; ``"loss"`` is their sum.

        Args:
            batch: ``images`` uint8 (B, 3, H, W); lists with one entry an image: ``boxes`` (n, 4) xyxy, ``labels`` (n,)
                rows of ``text`` less one, ``masks`` (n, H, W) when masks are trained, ``has_mask`` (n,) bool where some are not
                known, ``valid_size`` (h, w).
            text: (1 + base categories, C) text matrix; row 0 is background.
            generators: one an image; all random draws come from them.
            world: the processes over which a larger batch is spread; then the mean of their losses, and of the gradients, is
                that of the whole batch.
        """
        device, heads, world = self.device, self.config.heads, world or World(self.device)
        images = batch["images"].to(device, non_blocking=True)
        boxes = [value.to(device).float() for value in batch["boxes"]]
        labels = [value.to(device) for value in batch["labels"]]
        check_truth(boxes, labels, len(text) - 1, batch.get("keys"))
        features = self._features(images)[0]
        dense = self.proposals(features)
        losses = self.proposals.losses(dense, boxes, generators)
        proposals, _ = self.proposals.select(dense, torch.tensor(batch["valid_size"], device=device))
        regions = sample_regions(proposals, boxes, labels, heads, generators)
        embeds, deltas = self.box_head(self._align(features, regions.boxes, heads.box_size))
        losses["class"] = self._class_loss(embeds, regions.labels, text.to(device), world)
        losses["box"] = box_loss(deltas, regions) / world.mean_count(len(deltas))
        if self.mask_head is not None:
            known = batch.get("has_mask") or [torch.ones(len(box), dtype=torch.bool) for box in boxes]
            chosen = regions.foreground(heads.mask_samples, [value.to(device) for value in known])
            logits = self.mask_head(self._align(features, chosen.boxes, heads.mask_size))
            masks = [value.to(device, non_blocking=True) for value in batch["masks"]]
            losses["mask"] = mask_loss(logits, chosen.boxes, chosen.index, masks) / world.mean_count(
                logits.numel()
            )
        losses["loss"] = torch.stack(list(losses.values())).sum()
        losses["temperature"] = self.temperature.detach()
        return losses

    @overload
    def predict(
        self, image: list[Any] | tuple[Any, ...] | Encoded, labels: Words, **options: Any
    ) -> list[Detections]: ...

    @overload
    def predict(self, image: Iterator[Any], labels: Words, **options: Any) -> Iterator[Detections]: ...

    @overload
    def predict(self, image: Any, labels: Words, **options: Any) -> Detections: ...

    def predict(  # type: ignore[misc]  # the forms above leave its options to it
        self,
        image: Any,
        labels: Words,
        *,
        threshold: float | None = None,
        max_detections: int | None = None,
        novel: Collection[str] | None = None,
        masks: bool = True,
        explain: bool = False,
        precision: Precision = "auto",
        batch_size: int = 8,
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Find objects in one image, or in many.

        Args:
            image: a PIL image, a path, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W); a list of those, or what ``encode``
                gave; or an iterator, such as a generator, of which ``batch_size`` images are held at a time.
            labels: what to look for, or a ``Vocabulary`` that this detector made of it, or that says nothing of who did.
            threshold: scores must exceed it; the configuration's by default.
            max_detections: at most so many an image; the configuration's by default.
            novel: the labels to weigh as novel in the ensemble. By default those that the detector was not finetuned on.
            masks: predict masks too, where the detector has a head for them.
            explain: give the parts of each score too, as ``Detections.parts``.
            precision: as for ``encode``.
            batch_size: images that are encoded together.

        Returns:
            What was found in the image; a list for several, an iterator for an iterator.

        Raises:
            TypeError, ValueError: bad labels, a vocabulary of other weights, or an image of an unknown kind.
            FileNotFoundError: no image at the path.
        """
        if max_detections is not None and max_detections < 1:
            raise ValueError(f"predict: max_detections must be positive, got {max_detections}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"predict: threshold must be in [0, 1], got {threshold}")
        if batch_size < 1:
            raise ValueError(f"predict: batch_size must be positive, got {batch_size}")
        text = self._bank.vocabulary(labels)
        base = self._base(text.labels, novel)
        found = partial(
            self._find,
            text=text,
            base=base,
            threshold=threshold,
            limit=max_detections,
            masks=masks,
            explain=explain,
        )
        if isinstance(image, Encoded):
            return found(image)
        if isinstance(image, Iterator):
            return self._stream(image, found, precision, batch_size)
        if isinstance(image, (list, tuple)):
            return list(self._stream(iter(image), found, precision, batch_size))
        return found(self.encode([image], precision=precision))[0]

    def _stream(
        self,
        images: Iterator[Any],
        found: Callable[[Encoded], list[Detections]],
        precision: Precision,
        size: int,
    ) -> Iterator[Detections]:
        while batch := list(islice(images, size)):
            yield from found(self.encode(batch, precision=precision))

    @torch.no_grad()
    def encode(self, images: Sequence[Any], *, precision: Precision = "auto") -> Encoded:
        """Do all that does not depend on what is looked for: most of the time of ``predict``.

        Args:
            images: as ``predict`` takes each, or ``Prepared`` ones.
            precision: of the towers and heads: ``"bf16"``, ``"fp32"``, or ``"auto"``, which is bf16 where the device has
                products of it.

        Returns:
            what ``predict`` takes in the place of the images.

        Raises:
            TypeError, ValueError, FileNotFoundError: as ``predict`` of an image; another precision.
        """
        config, device = self.config, self.device
        prepared = [
            image if isinstance(image, Prepared) else prepare(read_image(image), config.image_size)
            for image in several(images, "encode: images")
        ]
        if not prepared:
            return Encoded([], [], [], [], [], [], "fp32")
        dtype = choose_precision(precision, device)
        with _evaluating(self), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
            pixels = torch.stack([image.pixels for image in prepared]).to(device)
            sizes = torch.tensor([image.valid_size for image in prepared], device=device)
            maps, dense = self._features(pixels, dense=config.scores.vlm)
            proposals, centers = self.proposals.select(self.proposals(maps), sizes)
            aligned = self._align(maps, proposals, config.heads.box_size)
            embeds, deltas = map(torch.cat, zip(*map(self.box_head, aligned.split(_BOXES))))
            frozen = self._frozen_embeddings(dense, pixels, proposals)
        counts = [len(rows) for rows in proposals]
        limits = sizes.flip(1).repeat(1, 2).float()
        decoded = decode_boxes(deltas, torch.cat(proposals)).split(counts)
        return Encoded(
            prepared,
            maps,
            [rows.clamp(min=0).minimum(limit) for rows, limit in zip(decoded, limits)],
            centers,
            list(embeds.split(counts)),
            None if frozen is None else list(frozen.float().split(counts)),
            dtype,
        )

    @torch.no_grad()
    def _find(
        self,
        encoded: Encoded,
        *,
        text: Vocabulary,
        base: Tensor,
        threshold: float | None,
        limit: int | None,
        masks: bool,
        explain: bool,
    ) -> list[Detections]:
        if not len(encoded):
            return []
        config, device = self.config, self.device
        scores = region_scores(
            torch.cat(encoded.embeds),
            text.embeddings.to(device),
            self.temperature,
            torch.cat(encoded.centers),
            base.to(device),
            None if encoded.frozen is None else torch.cat(encoded.frozen),
            config.scores,
        )
        picked = [
            pick(
                boxes,
                score,
                config.scores,
                config.scores.threshold if threshold is None else threshold,
                config.scores.max_detections if limit is None else limit,
            )
            for boxes, score in zip(encoded.boxes, scores.split([len(rows) for rows in encoded.boxes]))
        ]
        found = [to_original(p, text.labels, image) for p, image in zip(picked, encoded.images)]
        if masks:
            self.add_masks(encoded, found)
        if explain:
            for number, (detections, p) in enumerate(zip(found, picked)):
                detections.parts = score_parts(
                    encoded.embeds[number][p.rows],
                    text.embeddings.to(device),
                    self.temperature,
                    encoded.centers[number][p.rows],
                    None if encoded.frozen is None else encoded.frozen[number][p.rows],
                    config.scores,
                    p.label_ids,
                )
        return found

    @torch.no_grad()
    def add_masks(self, encoded: Encoded, found: Sequence[Detections]) -> None:
        """Give detections the masks that ``predict`` was told to leave out, where the detector has a head for them.

        Whoever shows a few of hundreds saves the time of the others' masks, on a CPU more than that of a tenth of the image.

        Args:
            encoded: B images.
            found: what ``predict`` found in each of them, or some of it.

        Raises:
            ValueError: detections of elsewhere, or of another number of images.
        """
        if self.mask_head is None or not len(encoded):
            return
        # One mask for all the labels of a proposal: the head does not know of labels.
        numbers = [of.proposals for of in found if of.proposals is not None]
        if not len(numbers) == len(found) == len(encoded):
            raise ValueError(
                f"add_masks: found must be of predict, one for each of {len(encoded)} images, got {len(numbers)} of it in {len(found)}"
            )
        unique = [of_image.to(self.device).unique(return_inverse=True) for of_image in numbers]
        boxes = [rows[proposals] for rows, (proposals, _) in zip(encoded.boxes, unique)]
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=encoded.precision == "bf16")
        with _evaluating(self), bf16:
            aligned = self._align(encoded.maps, boxes, self.config.heads.mask_size)
            drawn = torch.cat([self.mask_head(piece) for piece in aligned.split(_MASKS)]).sigmoid()
        masks = drawn.split([len(rows) for rows in boxes])
        for of, mask, image, (_, rows) in zip(found, masks, encoded.images, unique):
            of.masks = BoxMasks(mask[rows].float().cpu(), of.boxes, image.original_size)

    def _features(self, images: Tensor, *, dense: bool = False) -> tuple[list[Tensor], Tensor | None]:
        """Return the pyramid's maps and, if wanted, the frozen tower's dense features, (B, N, E)."""
        found = None
        if self.visual is None:
            with torch.no_grad():
                if dense:
                    tokens, found = self._frozen.encode_both(self.model, images)
                else:
                    tokens = self._frozen.encode(self.model.visual, images)
        else:
            tokens = self._finetuned.encode(self.visual, images)
            if dense:
                found = self._frozen.encode_dense(self.model, images)
        return self.pyramid(tokens, self._grid(images)), found

    def _frozen_embeddings(
        self, dense: Tensor | None, images: Tensor, proposals: list[Tensor]
    ) -> Tensor | None:
        if dense is None:
            return None
        patch, samples = self.model.visual.patch_size, self.config.scores.vlm_grid
        return frozen_embeddings(dense, self._grid(images), proposals, patch, samples)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        patch = self.model.visual.patch_size
        return images.shape[-2] // patch, images.shape[-1] // patch

    def _class_loss(self, embeds: Tensor, labels: Tensor, text: Tensor, world: World) -> Tensor:
        # Cosines are divided by about 0.01, more than bf16 can bear.
        with torch.autocast(embeds.device.type, enabled=False):
            logits = F.normalize(embeds.float(), dim=-1) @ text.T / (0.01 * self.temperature)
            weight = torch.ones_like(text[:, 0])
            weight[0] = self.config.heads.background_weight
            total = F.cross_entropy(logits, labels, weight=weight, reduction="sum")
            return total / world.mean_count(weight[labels].sum().item())

    def _base(self, labels: tuple[str, ...], novel: Collection[str] | None) -> Tensor:
        """Return (n,) bool: which labels get the base weight of the ensemble."""
        if novel is None:
            known = set(self.config.base_labels)
            return torch.tensor([label in known for label in labels])
        names = set(clean_labels(novel)) if novel else set()
        if names - set(labels):
            missing = ", ".join(sorted(names - set(labels)))
            raise ValueError(f"predict: novel must name labels that were asked for, got {missing}")
        return torch.tensor([label not in names for label in labels])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``tokenizer.json`` into ``folder``, all or none."""
        save_detector(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str] | None = None) -> Detector:
        """Read what ``save_pretrained`` wrote; by default the small detector of the demo's scenes, which is shipped.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is corrupt, or the folder holds something else than a detector.
        """
        return load_detector(cls, shipped_checkpoint() if folder is None else folder)


_MODES = threading.Lock()


@contextmanager
def _evaluating(detector: Detector) -> Iterator[None]:
    """Evaluation mode until the last of the threads that predict has left; then the mode that the first one found."""
    with _MODES:
        if not detector._predicting:
            detector._mode = detector.training
            if detector._mode:
                detector.eval()
        detector._predicting += 1
    try:
        yield
    finally:
        with _MODES:
            detector._predicting -= 1
            if not detector._predicting and detector._mode:
                detector.train()
