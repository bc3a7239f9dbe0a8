"""Image statistics: what a model subtracts from pixels and divides them by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of the three channels, of pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, mean: Any, std: Any) -> Statistics:
        """Check values that a file or a caller gives: three numbers each, or one for all.

        Raises:
            ValueError: something else.
        """
        return cls(_three("mean", mean, -math.inf), _three("std", std, 0.0))

    def of_pixels_times(self, factor: float) -> Statistics:
        """Take these as those of pixels that are ``factor`` times as large as in [0, 1]: return those of pixels in [0, 1]."""
        mean, std = ([x / factor for x in values] for values in (self.mean, self.std))
        return Statistics.of(mean, std)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Put ``(pixels - mean) / std`` into the patch embedding behind it, so that it takes pixels in [0, 1].

        Args:
            weight: (C, 3, P, P).
            bias: (C,), or None.
        """
        mean, std = (torch.tensor(x, dtype=torch.float64).reshape(1, 3, 1, 1) for x in (self.mean, self.std))
        scaled = weight.double() / std
        shift = -(scaled * mean).sum(dim=(1, 2, 3))
        if bias is not None:
            shift = shift + bias.double()
        return scaled.float(), shift.float()


def _three(name: str, values: Any, above: float) -> tuple[float, float, float]:
    listed = [values] * 3 if isinstance(values, (int, float)) else values
    numbers = isinstance(listed, Sequence) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) and x > above
        for x in listed
    )
    if not numbers or isinstance(listed, str) or len(listed) != 3:
        kind = "three numbers" if above < 0 else "three positive numbers"
        raise ValueError(f"import: the images' {name} must be {kind}, got {values!r}")
    return float(listed[0]), float(listed[1]), float(listed[2])


OPENAI = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
