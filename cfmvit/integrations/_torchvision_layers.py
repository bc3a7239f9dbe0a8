"""torchvision's layers as subclasses of its own, where it is installed: its detectors accept no others."""

from __future__ import annotations

from torch import nn

from cfmvit.integrations.torchvision import PlainMultiScaleRoIAlign, PlainRoIAlign

try:
    from torchvision.ops import MultiScaleRoIAlign as TheirMultiScaleRoIAlign
    from torchvision.ops import RoIAlign as TheirRoIAlign
except (ImportError, RuntimeError):  # the latter where torchvision was built for another torch
    TheirMultiScaleRoIAlign = TheirRoIAlign = nn.Module


class RoIAlign(PlainRoIAlign, TheirRoIAlign):
    """`torchvision.ops.RoIAlign`: see `roi_align`."""


class MultiScaleRoIAlign(PlainMultiScaleRoIAlign, TheirMultiScaleRoIAlign):
    """`torchvision.ops.MultiScaleRoIAlign`: each box pooled from the level of a pyramid that fits its size, all in one call.

    Args:
        featmap_names: names of the maps that are used.
        output_size: P or (P, Q).
        sampling_ratio: as for `roi_align`.
        canonical_scale, canonical_level: a square box with sides of canonical_scale pixels belongs to canonical_level.
    """
