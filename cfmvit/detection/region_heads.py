"""Heads on regions: a region embedding and a box, both class-agnostic, and a class-agnostic mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmvit._require import require
from cfmvit.detection.config import HeadConfig
from cfmvit.detection.pyramid import ChannelNorm
from cfmvit.detection.sampling import Regions
from cfmvit.ops import multilevel_roi_align, roi_align

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True)
class Aligner:
    """Crop boxes from the level of the pyramid that fits each one.

    The rule of the level is that of feature pyramid networks: a box 14 places wide belongs to the level, 224 px to P4.
    """

    strides: tuple[float, ...]
    sampling_ratio: int

    def __call__(self, features: list[Tensor], boxes: list[Tensor], size: int) -> Tensor:
        """Crop (R_i, 4) xyxy boxes an image from (B, C, h_l, w_l) maps: (R, C, size, size)."""
        return multilevel_roi_align(
            features,
            boxes,
            size,
            strides=self.strides,
            sampling_ratio=self.sampling_ratio,
        )


class NormalizedLinear(nn.Linear):
    """Linear map without bias, of normalised inputs by normalised weights, times a scale."""

    def __init__(self, inputs: int, outputs: int, scale: float = 20.0) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.scale = scale
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return self.scale * F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1))


class BoxHead(nn.Module):
    """Turn a region's features into an embedding in the joint space and four box deltas."""

    def __init__(self, channels: int, embed_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.convs = _convs(channels, config.channels, config.convs)
        inputs = (config.channels if config.convs else channels) * config.box_size**2
        self.fc = nn.Linear(inputs, config.fc)
        self.norm = nn.LayerNorm(config.fc, eps=1e-6)
        self.embed = NormalizedLinear(config.fc, embed_dim)
        self.deltas = nn.Linear(config.fc, 4)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map (R, C, S, S) to embeddings (R, embed_dim), not normalised, and deltas (R, 4), both float32."""
        hidden = self.convs(features)
        # Flattened as (S, S, C): on channels-last memory that is a view.
        hidden = F.relu(self.norm(self.fc(hidden.permute(0, 2, 3, 1).flatten(1))))
        return self.embed(hidden).float(), self.deltas(hidden).float()


class MaskHead(nn.Module):
    """Predict one mask a region at twice the resolution of its features."""

    def __init__(self, channels: int, config: HeadConfig) -> None:
        super().__init__()
        width = config.mask_channels
        self.convs = _convs(channels, width, config.mask_convs)
        inputs = width if config.mask_convs else channels
        self.up = nn.Sequential(
            nn.ConvTranspose2d(inputs, width, 2, 2), ChannelNorm(width, eps=1e-6), nn.ReLU(inplace=True)
        )
        self.predict = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (R, C, S, S) to mask logits (R, 2 S, 2 S), float32."""
        return self.predict(self.up(self.convs(features)))[:, 0].float()


def box_loss(deltas: Tensor, regions: Regions) -> Tensor:
    """Return the Huber loss of the foreground's deltas, summed; it is meant to be divided by the number of sampled regions."""
    foreground = regions.labels > 0
    boxes = torch.cat(regions.boxes)[foreground]
    wanted = _coder().encode_single(regions.targets[foreground], boxes)
    return F.huber_loss(deltas[foreground], wanted, reduction="sum")


def decode_boxes(deltas: Tensor, boxes: Tensor) -> Tensor:
    """Apply deltas (R, 4) to boxes (R, 4) xyxy."""
    return _coder().decode_single(deltas, boxes)


def mask_loss(logits: Tensor, boxes: list[Tensor], index: list[Tensor], masks: list[Tensor]) -> Tensor:
    """Return the binary cross-entropy of predicted masks, summed over all their pixels.

    Args:
        logits: (R, S, S), the images one after another.
        boxes: (R_i, 4) an image.
        index: (R_i,) which ground truth of the image each region has.
        masks: (M_i, H, W) ground truth of an image, 0 or 1.
    """
    size = logits.shape[-1]
    wanted = []
    for box, which, mask in zip(boxes, index, masks):
        if len(box):
            rois = torch.cat([which[:, None].to(box), box], dim=1)
            wanted.append(roi_align(mask[:, None].to(box), rois, size, aligned=True)[:, 0])
    if not wanted:
        return logits.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits, torch.cat(wanted), reduction="sum")


def _coder() -> Any:
    return require("torchvision.models.detection._utils", extra="detection").BoxCoder(BOX_WEIGHTS)


def _convs(inputs: int, channels: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(count):
        conv = nn.Conv2d(inputs if number == 0 else channels, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, ChannelNorm(channels, eps=1e-6), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
