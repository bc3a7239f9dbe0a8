"""detectron2's RoIAlign layer, without detectron2: `ROIAlign`.

detectron2's own layer calls torchvision's function: `cfmvit.integrations.torchvision.install("detectron2")` serves it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfmvit.integrations import torchvision


class ROIAlign(torchvision.PlainRoIAlign):
    """`detectron2.layers.ROIAlign`, on `cfmvit.ops.roi_align`. Boxes keep a floating dtype, so they lose no digits to half maps."""

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, aligned)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]  # theirs takes no list
        """Pool rois (R, 5), the number of their image first, of input (B, C, H, W): (R, C, P, Q).

        Raises:
            AssertionError: rois don't have that shape.
        """
        torchvision.check_rois("ROIAlign", rois)
        if input.is_quantized:
            input = input.dequantize()
        if not rois.is_floating_point():
            rois = rois.to(torch.promote_types(input.dtype, torch.float32))
        return super().forward(input, rois)
