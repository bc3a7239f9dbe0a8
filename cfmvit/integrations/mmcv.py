"""mmcv's RoIAlign, without mmcv: `roi_align`, `RoIAlign`. Mean pooling only; "max" goes to mmcv itself."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from cfmvit._require import require
from cfmvit.integrations import _fallback, torchvision


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """`mmcv.ops.roi_align`: pool rois (R, 5), the number of their image first, of input (B, C, H, W).

    Args:
        input, rois, output_size, spatial_scale, sampling_ratio, aligned: as for `cfmvit.ops.roi_align`.
        pool_mode: "avg", or "max", which mmcv computes.

    Returns:
        (R, C, P, Q), dtype of `input`.

    Raises:
        AssertionError: pool_mode is unknown, or rois don't have five columns.
        ImportError: pool_mode is "max" and mmcv is not installed.
    """
    if pool_mode not in ("max", "avg"):
        raise AssertionError(f"roi_align: pool_mode must be 'max' or 'avg', got {pool_mode!r}")
    torchvision.check_rois("roi_align", rois)
    if pool_mode == "max":
        _fallback.say("roi_align", "pool_mode 'max'")
        theirs = require("mmcv.ops", package="mmcv")
        return theirs.roi_align(input, rois, output_size, spatial_scale, sampling_ratio, pool_mode, aligned)
    return torchvision.roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned)


def _renamed(**names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Take keyword arguments by older names, and say so."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> None:
            for old in names.keys() & kwargs.keys():
                if names[old] in kwargs:
                    raise AssertionError(f"RoIAlign: {old} must not be given beside {names[old]}, got both")
                warnings.warn(
                    f"RoIAlign: {old} is an older name of {names[old]}", DeprecationWarning, stacklevel=2
                )
                kwargs[names[old]] = kwargs.pop(old)
            function(*args, **kwargs)

        return call

    return decorate


class RoIAlign(torchvision.PlainRoIAlign):
    """`mmcv.ops.RoIAlign`: see `roi_align`.

    Args:
        output_size, spatial_scale, sampling_ratio, pool_mode, aligned: as there.
        use_torchvision: ignores pool_mode, as torchvision knows the mean only.

    `out_size` and `sample_num` are older names of output_size and sampling_ratio.
    """

    shown = (*torchvision.PlainRoIAlign.shown[:3], "pool_mode", "aligned", "use_torchvision")

    @_renamed(out_size="output_size", sample_num="sampling_ratio")
    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = "avg",
        aligned: bool = True,
        use_torchvision: bool = False,
    ) -> None:
        size = torchvision.pair(output_size)
        super().__init__(size, float(spatial_scale), int(sampling_ratio), aligned)
        self.pool_mode = pool_mode
        self.use_torchvision = use_torchvision

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]  # theirs takes no list
        """Pool rois (R, 5) of input (B, C, H, W): (R, C, P, Q)."""
        mode = "avg" if self.use_torchvision else self.pool_mode
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, mode, self.aligned
        )
