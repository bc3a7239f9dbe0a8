"""torchvision's RoIAlign: `roi_align`, `RoIAlign`, `MultiScaleRoIAlign`, and unmodified detectors on them.

    with cfmvit.integrations.torchvision.install():
        losses = mask_rcnn(images, targets)     # a torchvision model as it is

On `cfmvit.ops`, so: bfloat16, channels-last maps without a copy, float32 sums whatever the maps' dtype, a deterministic backward
pass, boxes of any float dtype, one call for all levels of a pyramid, and an error for boxes of images that don't exist.
"""

# Annotations are evaluated here: torch.fx writes them into its graphs, and TorchScript reads them there.
import importlib
import math
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
from torch import Tensor, nn

from cfmvit import ops
from cfmvit._require import require
from cfmvit.integrations import _fallback
from cfmvit.integrations._patch import Patch, Replacement, original, references
from cfmvit.integrations._scripting import scripted_as
from cfmvit.ops.regions import checks
from cfmvit.ops.regions import functional as regions

if TYPE_CHECKING:
    from cfmvit.integrations._torchvision_layers import MultiScaleRoIAlign as MultiScaleRoIAlign
    from cfmvit.integrations._torchvision_layers import RoIAlign as RoIAlign

_ROI_ALIGN, _POOLERS = "torchvision.ops.roi_align", "torchvision.ops.poolers"
_LAYERS = ("MultiScaleRoIAlign", "RoIAlign")


def __getattr__(name: str) -> Any:
    """Make the layers when they are first asked for: they are subclasses of torchvision's, whose import takes seconds."""
    if name in _LAYERS:
        return getattr(importlib.import_module("cfmvit.integrations._torchvision_layers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAYERS})


@torch.fx.wrap
@scripted_as(_ROI_ALIGN)
def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """`torchvision.ops.roi_align` on `cfmvit.ops.roi_align`.

    Args:
        input: (B, C, H, W)
            Feature maps.
        boxes: (R, 5), or a list of tensors (R_i, 4)
            Boxes (x1, y1, x2, y2) with the number of their image first, or a list with those of each image; the last images
            may be left out, and what follows them must be empty.
        output_size, spatial_scale, sampling_ratio, aligned
            As for `cfmvit.ops.roi_align`.

    Returns:
        (R, C, P, Q), dtype of `input`.

    Raises:
        AssertionError: boxes don't have four or five columns.
        ValueError, TypeError: another argument breaks the rules of `cfmvit.ops.roi_align`.
    """
    _check_boxes(boxes)
    size = pair(output_size)
    reason = _why_not("roi_align", input)
    if reason:
        _fallback.say("roi_align", reason)
        theirs = _original(_ROI_ALIGN, "roi_align", input)
        if theirs is not None:
            return theirs(input, boxes, size, spatial_scale, sampling_ratio, aligned)
    return ops.roi_align(input, _rois(boxes), size, spatial_scale, sampling_ratio, aligned)


class PlainRoIAlign(nn.Module):
    """`RoIAlign`, which is this and a subclass of torchvision's, without torchvision."""

    shown: tuple[str, ...] = ("output_size", "spatial_scale", "sampling_ratio", "aligned")

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool the rois of input (B, C, H, W): (R, C, P, Q)."""
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in self.shown)})"


class LevelMapper:
    """The level of each box in a feature pyramid, equation 1 of Lin et al. 2017, counted from the finest.

    A box whose area is below zero or not a number belongs to level -1, which is none.
    """

    def __init__(
        self,
        k_min: int,
        k_max: int,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        eps: float = 1e-6,
    ) -> None:
        self.k_min = k_min
        self.k_max = k_max
        self.s0 = canonical_scale
        self.lvl0 = canonical_level
        self.eps = eps

    def __call__(self, boxlists: Sequence[Tensor]) -> Tensor:
        """Map boxes, (R_i, 4) of each image, to (R,) int64."""
        boxes = torch.cat([some.to(torch.promote_types(some.dtype, torch.float32)) for some in boxlists])
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        level = torch.floor(self.lvl0 + torch.log2(area.sqrt() / self.s0) + self.eps)
        level = level.clamp(self.k_min, self.k_max) - self.k_min
        return torch.where(level.isnan(), -1, level).long()


class PlainMultiScaleRoIAlign(nn.Module):
    """`MultiScaleRoIAlign`, which is this and a subclass of torchvision's, without torchvision."""

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        nn.Module.__init__(self)
        self.featmap_names = featmap_names
        self.sampling_ratio = sampling_ratio
        self.output_size = pair(output_size)
        self.scales: list[float] | None = None
        self.map_levels: LevelMapper | None = None
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level

    def forward(
        self,
        x: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """Pool boxes, (R_i, 4) of each image in its pixels, from maps x of images of `image_shapes` (height, width).

        The maps' scales are found from the shapes at the first call, and kept, as torchvision does.

        Returns:
            (R, C, P, Q), dtype of the first map.

        Raises:
            ValueError: image_shapes is empty, or no map has a name of featmap_names.
        """
        maps = _filter_input(x, self.featmap_names)
        if self.scales is None or self.map_levels is None:
            self.scales, self.map_levels = _setup_scales(
                maps, image_shapes, self.canonical_scale, self.canonical_level
            )
        return _multiscale_roi_align(
            maps, boxes, self.output_size, self.sampling_ratio, self.scales, self.map_levels
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio})"
        )


def install(*packages: str) -> Patch:
    """Make torchvision's own code use the functions above: its layers, its detectors, whether made already or later.

    Args:
        packages: top-level packages, already imported, whose references to torchvision's `roi_align` are replaced as well,
            for example "detectron2".

    Returns:
        The patch: `.remove()` it, or use it in a `with` statement.

    Raises:
        ImportError: torchvision is not installed.
    """
    replacements: list[Replacement] = []
    for module, ours in ((_ROI_ALIGN, roi_align), (_POOLERS, _multiscale_roi_align)):
        name = ours.__name__
        theirs = original(require(module, extra="detection"), name, None)
        if theirs is None:
            version = sys.modules["torchvision"].__version__
            warnings.warn(
                f"install: torchvision {version} has no {module}.{name}: it is left out", stacklevel=2
            )
            continue
        values = (theirs, ours)  # ours: an earlier patch may hold it
        replacements += [(*place, ours) for place in references(values, ("torchvision", *packages))]
    served = {owner.__name__.partition(".")[0] for owner, *_ in replacements}
    if absent := set(packages) - served:
        names = ", ".join(sorted(absent))
        warnings.warn(
            f"install: no loaded module of {names} holds torchvision's roi_align: nothing of it is replaced",
            stacklevel=2,
        )
    return Patch(replacements)


@torch.fx.wrap
@scripted_as(_POOLERS)
def _filter_input(x: dict[str, Tensor], featmap_names: Sequence[str]) -> list[Tensor]:
    maps = [value for name, value in x.items() if name in featmap_names]
    if not maps:
        raise ValueError(f"MultiScaleRoIAlign: x must have maps named as in {featmap_names}, got {list(x)}")
    return maps


@torch.fx.wrap
@scripted_as(_POOLERS)
def _multiscale_roi_align(
    x_filtered: Sequence[Tensor],
    boxes: list[Tensor],
    output_size: Sequence[int],
    sampling_ratio: int,
    scales: Sequence[float] | None,
    mapper: Any,
) -> Tensor:
    """Pool boxes from the levels that `mapper` gives; boxes that belong to no level give zeros, as in torchvision."""
    op = "MultiScaleRoIAlign"
    if scales is None or mapper is None:
        raise ValueError("MultiScaleRoIAlign: scales and mapper must be given, got None")
    features = list(x_filtered)
    if len(features) == 1:
        return roi_align(features[0], boxes, output_size, scales[0], sampling_ratio)
    reason = next(filter(None, (_why_not("multilevel_roi_align", some) for some in features)), "")
    if reason:
        _fallback.say(op, reason)
        theirs = _original(_POOLERS, "_multiscale_roi_align", features[0])
        if theirs is not None:
            return theirs(features, boxes, output_size, sampling_ratio, scales, mapper)
    dtype = features[0].dtype
    if any(some.dtype != dtype for some in features):  # autocast may have chosen differently for each level
        widest = max((some.dtype for some in features), key=lambda kind: torch.finfo(kind).bits)
        features = [some.to(widest) for some in features]
    checks.levels(op, features)
    _check_boxes(boxes)
    levels = mapper(boxes)
    rois = regions._rois(op, _rois(boxes), features[0], features[0].shape[0])
    nowhere = (levels < 0) | (levels >= len(features))
    rois = torch.cat([rois[:, :1], rois[:, 1:].masked_fill(nowhere[:, None], math.nan)], 1)
    run = regions._choose("multilevel_roi_align", features[0], None)
    levels = levels.clamp(0, len(features) - 1)
    return run(features, rois, levels, list(scales), *output_size, int(sampling_ratio), False).to(dtype)


@torch.fx.wrap
@scripted_as(_POOLERS)
def _setup_scales(
    maps: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    canonical_scale: int,
    canonical_level: int,
) -> tuple[list[float], LevelMapper]:
    """Infer the maps' scales, powers of two, from the largest image's height."""
    if not image_shapes:
        raise ValueError("MultiScaleRoIAlign: image_shapes must have one shape for each image, got none")
    height = max(shape[0] for shape in image_shapes)
    exponents = [round(math.log2(some.shape[-2] / height)) for some in maps]
    poolers = sys.modules.get(_POOLERS)  # torchvision's own class is one that can be scripted
    mapper = getattr(poolers, "LevelMapper", LevelMapper)
    mapper = mapper(-exponents[0], -exponents[-1], canonical_scale, canonical_level)
    return [2.0**exponent for exponent in exponents], mapper


def _check_boxes(boxes: Tensor | Sequence[Tensor]) -> None:
    if isinstance(boxes, Tensor):
        check_rois("roi_align", boxes, "boxes")
        return
    if not isinstance(boxes, (list, tuple)):
        raise AssertionError(
            f"roi_align: boxes must be a tensor (R, 5) or a list of tensors (R_i, 4), got {type(boxes).__name__}"
        )
    for some in boxes:
        if not isinstance(some, Tensor):
            raise TypeError(f"roi_align: boxes must be a list of tensors, got one of {type(some).__name__}")
        if some.dim() != 2 or some.shape[1] != 4:
            raise AssertionError(
                f"roi_align: boxes must have shape (R_i, 4) for each image, got {tuple(some.shape)}"
            )


def check_rois(op: str, rois: Tensor, name: str = "rois") -> None:
    """Raise unless `rois` is (R, 5)."""
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise AssertionError(f"{op}: {name} must have shape (R, 5), got {tuple(rois.shape)}")


def _rois(boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """Return boxes as (R, 5), the number of their image first, in float32 at least: half has no room for that number.

    As torchvision does, without a look at how many images there are, which may not be known while a program is exported.
    """
    if isinstance(boxes, Tensor):
        return boxes
    if not boxes:
        raise ValueError("roi_align: boxes must have a tensor for each image, got an empty list")
    parts = []
    for image, some in enumerate(boxes):
        if some.is_floating_point():
            some = some.detach().to(torch.promote_types(some.dtype, torch.float32))
        parts.append(torch.cat([torch.full_like(some[:, :1], image), some], 1))
    return torch.cat(parts)


def pair(output_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return (P, Q) of `output_size`, which may be one number for both."""
    if hasattr(output_size, "__iter__"):
        return tuple(output_size)
    return (output_size, output_size)


def _why_not(op: str, input: Tensor) -> str:
    """Say why the op can't take a map; empty where it can, or where it is to reject it."""
    if input.is_quantized:
        return "a quantised map"
    if torch.onnx.is_in_onnx_export():
        return "ONNX export"
    return _fallback.why_not(op, input)


def _original(module: str, name: str, input: Tensor) -> Any:
    """Return torchvision's own function, or None where torchvision is absent or can't take such a map either."""
    if input.dtype == torch.bfloat16:
        return None
    try:
        require(module, extra="detection")
    except ImportError:
        return None
    return original(sys.modules[module], name)
