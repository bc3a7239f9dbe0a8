"""Masks kept as they are predicted, small and within their boxes; one is drawn at the image's size when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from cfmvit._require import require


@dataclass(frozen=True)
class BoxMasks:
    """n masks of an image; an integer index gives one as bool (H, W), anything else selects.

    All of them at the image's size take n * H * W bytes: 3.6 GB for 300 detections in a photograph of 12 megapixels.
    ``dense`` and NumPy's ``asarray`` make that.

    Attributes:
        probabilities: (n, S, S) float32 within the boxes.
        boxes: (n, 4) float32 xyxy in pixels.
        size: (H, W) of the image.
    """

    probabilities: Tensor
    boxes: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: Tensor | slice) -> BoxMasks: ...

    def __getitem__(self, index: Any) -> BoxMasks | Tensor:
        if isinstance(index, int):
            mask = torch.zeros(self.size, dtype=torch.bool)
            self._draw(range(len(self))[index], mask)
            return mask
        return BoxMasks(self.probabilities[index], self.boxes[index], self.size)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))

    def dense(self) -> Tensor:
        """Return all masks as bool (n, H, W)."""
        masks = torch.zeros(len(self), *self.size, dtype=torch.bool)
        for row, mask in enumerate(masks):
            self._draw(row, mask)
        return masks

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self.dense().numpy().astype(dtype or bool, copy=False)

    def to_rle(self) -> list[dict[str, Any]]:
        """Return COCO's compressed run-length codes, ``{"size": [H, W], "counts": str}``."""
        coder = require("pycocotools.mask", extra="detection")
        codes = []
        for mask in self:
            code = coder.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            codes.append({"size": list(code["size"]), "counts": code["counts"].decode("ascii")})
        return codes

    def _draw(self, row: int, mask: Tensor) -> None:
        """Resize one mask to its box, as torchvision does, and draw it into a bool (H, W)."""
        heads = require("torchvision.models.detection.roi_heads", extra="detection")
        wide, scale = heads.expand_masks(self.probabilities[row : row + 1, None], padding=1)
        box = heads.expand_boxes(self.boxes[row : row + 1], scale).to(torch.int64)[0]
        # In a frame that begins at the box's corner; whole pixels, so that nothing is resampled otherwise.
        left, top = (int(corner.clamp(min=0)) for corner in box[:2])
        inside = mask[top : max(top, int(box[3]) + 1), left : max(left, int(box[2]) + 1)]
        if inside.numel():
            moved = box - torch.tensor([left, top, left, top])
            inside[:] = heads.paste_mask_in_image(wide[0, 0], moved, *inside.shape) > 0.5
