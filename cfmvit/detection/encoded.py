"""What a detector sees in images before it is told what to look for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cfmvit.detection.image_input import Prepared


@dataclass(frozen=True)
class Encoded:
    """Images as ``Detector.encode`` leaves them: any words can be looked for in them, for little more than a product each.

    Attributes:
        images: B images, resized.
        maps: the pyramid's maps, (B, C, h_l, w_l) each, which masks are made of.
        boxes: (K_i, 4) xyxy an image, in pixels of the resized image.
        centers: (K_i,) centerness an image.
        embeds: (K_i, E) region embeddings an image, of the detector.
        frozen: (K_i, E) region embeddings an image, of the frozen tower; None where it is not used.
        precision: in which they were made.
    """

    images: list[Prepared]
    maps: list[Tensor]
    boxes: list[Tensor]
    centers: list[Tensor]
    embeds: list[Tensor]
    frozen: list[Tensor] | None
    precision: Literal["fp32", "bf16"]

    def __len__(self) -> int:
        return len(self.images)
