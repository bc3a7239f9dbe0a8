"""A detector that looks for one vocabulary, with no shape that depends on a value: what is exported."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cfmvit.detection.detector import Detector
from cfmvit.detection.ensemble import region_scores
from cfmvit.detection.exporting.regions import crop, pool
from cfmvit.detection.exporting.suppression import NONE, Suppress
from cfmvit.detection.region_heads import decode_boxes


class FixedVocabulary(nn.Module):
    """``Detector.predict`` for these labels, from resized images to boxes in them.

    Args:
        detector: it is copied, in float32 on the CPU, without its text tower.
        labels: n names.
        suppress: a form of the non-maximum suppression.

    Attributes:
        labels: the names, cleaned.
    """

    text: Tensor
    base: Tensor

    def __init__(self, detector: Detector, labels: Sequence[str], suppress: Suppress) -> None:
        super().__init__()
        vocabulary = detector.vocabulary(labels)
        self.labels = vocabulary.labels
        self.register_buffer("text", vocabulary.embeddings.cpu().clone())
        self.register_buffer(
            "base", torch.tensor([label in detector.config.base_labels for label in self.labels])
        )
        self.detector = _image_part(detector)
        self._suppress = suppress

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Find objects.

        Args:
            images: uint8 (B, 3, S, S), resized until the longer side is S, zeros at the right and at the bottom.
            sizes: int64 (B, 2), height and width of each without these zeros.

        Returns:
            ``boxes`` (B, M, 4) float32 xyxy in pixels of ``images``, ``scores`` (B, M) float32, falling, ``labels`` (B, M) int64
            counted from 0 and, of a detector with masks, ``masks`` (B, M, s, s) float32, probabilities within each box. Rows
            that are not needed have zeros, and the label -1.
        """
        detector, config = self.detector, self.detector.config
        heads, parts = config.heads, config.scores
        maps, dense = detector._features(images, dense=parts.vlm)
        proposals, centers = self._proposals(maps, sizes)
        count = proposals.shape[1]
        embeds, deltas = detector.box_head(crop(detector._align, maps, proposals, heads.box_size))
        frozen = None
        if dense is not None:
            grid, patch = detector._grid(images), detector.model.visual.patch_size
            frozen = pool(dense, grid, proposals, patch, parts.vlm_grid)
        scores = region_scores(
            embeds, self.text, detector.temperature, centers.clamp(min=0).flatten(), self.base, frozen, parts
        ).unflatten(0, (-1, count))
        limit = sizes.to(deltas).flip(1).repeat(1, 2).unsqueeze(1)
        boxes = decode_boxes(deltas, proposals.flatten(0, 1)).unflatten(0, (-1, count))
        boxes = boxes.clamp(min=0).minimum(limit)
        valid = (boxes[..., 2:] > boxes[..., :2]).all(-1) & (centers > NONE)
        scores = torch.where(valid[..., None] & (scores > parts.threshold), scores, NONE)
        left = self._suppress(boxes, scores, parts.nms, parts.candidates)
        best, index = left.flatten(1).topk(min(parts.max_detections, count * len(self.labels)))
        found, row = best > NONE, index // len(self.labels)
        boxes = torch.where(found[..., None], _rows(boxes, row), 0)
        result = {
            "boxes": boxes,
            "scores": torch.where(found, best, 0),
            "labels": torch.where(found, index % len(self.labels), -1),
        }
        if detector.mask_head is not None:
            drawn = detector.mask_head(crop(detector._align, maps, boxes, heads.mask_size)).sigmoid()
            drawn = drawn.unflatten(0, (-1, best.shape[1]))
            result["masks"] = torch.where(found[..., None, None], drawn, 0)
        return result

    def _proposals(self, maps: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best boxes (B, K, 4) and their centerness (B, K), as ``ProposalNetwork.select`` does but always K."""
        network = self.detector.proposals
        boxes, centers, levels = network.candidates(network(maps), sizes)
        centers = torch.where((boxes[..., 2:] > boxes[..., :2]).all(-1), centers, NONE)
        if network.config.nms_test < 1:
            own = levels[:, None] == torch.arange(len(maps))
            by_level = torch.where(own, centers[..., None], NONE)
            centers = self._suppress(boxes, by_level, network.config.nms_test, boxes.shape[1]).amax(-1)
        best, row = centers.topk(min(network.config.post_nms, boxes.shape[1]))
        return _rows(boxes, row), best


def _rows(boxes: Tensor, row: Tensor) -> Tensor:
    return boxes.gather(1, row[..., None].expand(-1, -1, 4))


def _image_part(detector: Detector) -> Detector:
    """Return a copy without what reads texts, its positional embeddings resized to the detector's images."""
    config, model = detector.config, detector.model
    # Left out of the copy, and not taken from the detector meanwhile.
    part = copy.deepcopy(detector, {id(model.text): None, id(model.decoder): None})
    part = part.float().cpu().eval().requires_grad_(False)
    like = torch.zeros(1, 3, config.image_size, config.image_size)
    for tower in {part.model.visual, part.visual or part.model.visual}:
        positions = tower.positions(like)
        tower.grid = config.image_size // tower.patch_size
        tower.pos_embed.data = positions
    return part
