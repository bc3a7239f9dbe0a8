"""OLN-RPN: class-agnostic proposals scored by centerness, so that unseen categories are not taken for background.

Kim, Lin, Angelova, Kweon, Kuo: Learning Open-World Object Proposals without Learning to Classify (2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmvit._require import require
from cfmvit.detection.anchors import centerness, decode_lrtb, encode_lrtb, lrtb_iou, make_anchors
from cfmvit.detection.config import ProposalConfig
from cfmvit.detection.pyramid import ChannelNorm
from cfmvit.detection.sampling import choose, match


@dataclass
class Dense:
    """Predictions at every place of every level, level after level.

    Attributes:
        logits: (B, A) centerness before the sigmoid.
        distances: (B, A, 4) left, right, top, bottom in anchor sides.
        anchors: (A, 4) xyxy.
        counts: places of each level; their sum is A.
    """

    logits: Tensor
    distances: Tensor
    anchors: Tensor
    counts: list[int]


class ProposalNetwork(nn.Module):
    """Predict centerness and a box at each place of the pyramid."""

    def __init__(self, channels: int, strides: list[float], config: ProposalConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = strides
        layers: list[nn.Module] = []
        for _ in range(config.convs):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1),
                ChannelNorm(channels, eps=1e-6),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        # Centerness and the four distances from one 1x1 convolution.
        self.predict = nn.Conv2d(channels, 5, 1)
        for layer in self.trunk:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.get_parameter("bias"))
        nn.init.normal_(self.predict.weight, std=0.01)
        bias = nn.init.zeros_(self.predict.get_parameter("bias"))
        # A fresh network then predicts the anchors themselves.
        nn.init.constant_(bias[1:].data, 0.5)

    def forward(self, features: list[Tensor]) -> Dense:
        """Predict from (B, C, h_l, w_l) maps; results are float32."""
        shapes = [(level.shape[-2], level.shape[-1]) for level in features]
        outputs = [self.predict(self.trunk(level)).flatten(2).transpose(1, 2) for level in features]
        output = torch.cat(outputs, dim=1).float()
        anchors = make_anchors(shapes, self.strides, self.config.anchor_scale, output.device)
        return Dense(output[..., 0], output[..., 1:], anchors, [height * width for height, width in shapes])

    def losses(
        self, dense: Dense, boxes: list[Tensor], generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Return ``rpn_center`` (L1 on the sigmoid) and ``rpn_box`` (1 - IoU, weighted).

        Both are sums over the batch divided by its number of samples. Boxes learn from matched places only, those
        whose anchor's centre lies in the object.

        Args:
            boxes: (M_i, 4) ground truth an image.
            generators: one an image, for its random subsets.
        """
        config = self.config
        center_index, center_target, box_index, box_target = [], [], [], []
        for number, (truth, generator) in enumerate(zip(boxes, generators, strict=True)):
            offset = number * len(dense.anchors)
            matches = match(truth, dense.anchors, config.center_match, config.center_unmatched, force=True)
            positive, negative = choose(matches, config.samples, config.center_foreground, generator)
            distances = encode_lrtb(dense.anchors[positive], truth[matches[positive]])
            center_index += [positive + offset, negative + offset]
            center_target += [centerness(distances), distances.new_zeros(len(negative))]

            matches = match(truth, dense.anchors, config.box_match, config.box_match, force=True)
            positive = (matches >= 0).nonzero()[:, 0]
            distances = encode_lrtb(dense.anchors[positive], truth[matches[positive]])
            inside = (distances > 0).all(-1)
            box_index.append(positive[inside] + offset)
            box_target.append(distances[inside])
        normalizer = len(boxes) * config.samples
        predicted = dense.logits.flatten()[torch.cat(center_index)].sigmoid()
        center = F.l1_loss(predicted, torch.cat(center_target), reduction="sum") / normalizer
        distances = dense.distances.flatten(0, 1)[torch.cat(box_index)].clamp(min=0)
        overlap = lrtb_iou(distances, torch.cat(box_target))
        return {"rpn_center": center, "rpn_box": config.box_loss_weight * (1 - overlap).sum() / normalizer}

    @torch.no_grad()
    def select(self, dense: Dense, sizes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Keep the best boxes of each image.

        Args:
            sizes: (B, 2) height and width of each image without its padding; boxes are clipped to them.

        Returns:
            boxes (K_i, 4) and centerness (K_i,) an image, by falling centerness; K_i at most ``post_nms``.
        """
        boxes, scores, levels = self.candidates(dense, sizes)
        valid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        group = levels + len(dense.counts) * torch.arange(len(boxes), device=boxes.device)[:, None]
        order = self._order(boxes[valid], scores[valid], group[valid])
        image = group[valid][order] // len(dense.counts)
        boxes, scores = boxes[valid][order], scores[valid][order]
        picked = [(image == number).nonzero()[: self.config.post_nms, 0] for number in range(len(sizes))]
        return [boxes[rows] for rows in picked], [scores[rows] for rows in picked]

    def candidates(self, dense: Dense, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best places of each level, as many in every image, some perhaps without area once they are clipped.

        Args:
            sizes: as for ``select``.

        Returns:
            boxes (B, K, 4), centerness (B, K) and level (K,) counted from 0.
        """
        index, levels, start = [], [], 0
        for level, count in enumerate(dense.counts):
            top = dense.logits[:, start : start + count].topk(min(count, self.config.pre_nms), dim=1).indices
            index.append(top + start)
            levels.append(top.new_full(top.shape[1:], level))
            start += count
        kept = torch.cat(index, dim=1)
        scores = dense.logits.gather(1, kept).sigmoid()
        distances = dense.distances.gather(1, kept.unsqueeze(-1).expand(-1, -1, 4)).clamp(min=0)
        limit = sizes.to(distances).flip(1).repeat(1, 2).unsqueeze(1)
        boxes = decode_lrtb(dense.anchors[kept], distances).clamp(min=0).minimum(limit)
        return boxes, scores, torch.cat(levels)

    def _order(self, boxes: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """Return the boxes that survive NMS within their image and level, by falling score."""
        threshold = self.config.nms_train if self.training else self.config.nms_test
        if threshold >= 1:
            return scores.argsort(descending=True, stable=True)
        return require("torchvision.ops", extra="detection").batched_nms(boxes, scores, group, threshold)
