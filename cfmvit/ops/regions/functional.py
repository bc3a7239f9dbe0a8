"""Features of boxes: RoIAlign on maps and on tokens, and open-vocabulary scores.

Letters: B images, C channels, H x W pixels of a map, N tokens, R boxes, P x Q bins of a box, n labels.
Boxes are (x1, y1, x2, y2). Coordinates are computed in float32 or better whatever the features' dtype, sums in float32
(float64 for float64). Boxes get no gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops.regions import checks, native, reference
from cfmvit.ops.shared import library
from cfmvit.ops.shared.implementation import use_native
from cfmvit.ops.shared.index_checking import readable

_NATIVE = native.register() if library.core is not None else {}


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    impl: str | None = None,
) -> Tensor:
    """Average bilinear samples of a map in each of P x Q bins of each box, as torchvision.ops.roi_align does.

    Differences: bfloat16 too; float16 maps are summed in float32; any float dtype of boxes; every layout of `input` is read
    where it lies, and a channels-last one gives a channels-last result; the backward pass is deterministic.

    Memory on a GPU: where boxes are many, a map that is not channels-last in whole 16 bytes is copied so, and the result's
    gradient likewise; each copy is as large as what it copies, channels rounded up to 16 bytes.

    Args:
        input: (B, C, H, W) floating
            Feature maps.
        boxes: (R, 5) floating, or B tensors (R_i, 4)
            Boxes with the number of their image in the first column, or a list with the boxes of each image (and empty
            tensors after them). (R, 5) in bfloat16 is refused beyond 257 images, in float16 beyond 2049: these dtypes round
            larger image numbers, and torchvision reads the image that they are rounded to. A box with a coordinate that is
            not finite gives zeros; a box without area is treated as torchvision does.
        output_size: int or (P, Q)
            Bins, at most 65536 along a side; none (0) gives an empty result.
        spatial_scale: float, default 1
            Pixels of the map per unit of the boxes.
        sampling_ratio: int, default -1
            Samples along each side of a bin, at most 65536 along a side of the box; not positive: ceil(side of the bin in
            pixels of the map). In that case a box whose bins would have more than 65536 gives zeros.
        aligned: bool, default False
            Shift boxes by half a pixel, so that they and the map's pixels agree (wanted in all but old checkpoints).
        impl: "reference" | "native", optional
            Forces an implementation.

    Returns:
        (R, C, P, Q), dtype of `input`.

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "roi_align"
    checks.floating(op, "input", input, 4)
    bins = checks.sampling(op, output_size, sampling_ratio)
    scale = checks.scale(op, "spatial_scale", spatial_scale)
    run = _choose(op, input, impl)
    rois = _rois(op, boxes, input, input.shape[0], impl)
    return run(input, rois, scale, *bins, int(sampling_ratio), bool(aligned))


def multilevel_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    *,
    strides: Sequence[float] = (4, 8, 16, 32),
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_scale: float = 224,
    canonical_level: float = 4,
    impl: str | None = None,
) -> Tensor:
    """Apply `roi_align` to each box on the level of a feature pyramid that fits its size.

    The level is that of feature pyramid networks, floor(canonical_level + log2(sqrt(area) / canonical_scale)), held within
    the levels that there are; level k is the map of stride 2 ** k.

    Args:
        features: L tensors (B, C, H_l, W_l) floating
            Maps of the same images, finest first.
        boxes: (R, 5) floating, or B tensors (R_i, 4)
            As for `roi_align`, in pixels of the images.
        output_size: int or (P, Q)
            As for `roi_align`.
        strides: L numbers, default (4, 8, 16, 32)
            Pixels of the images per pixel of each map, each twice the one before.
        sampling_ratio: int, default 2
            As for `roi_align`.
        aligned: bool, default True
            As for `roi_align`.
        canonical_scale: float, default 224
            Side in pixels of a square box that belongs to canonical_level.
        canonical_level: float, default 4
            See canonical_scale.
        impl: "reference" | "native", optional
            Forces an implementation.

    Returns:
        (R, C, P, Q), dtype of the features.

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "multilevel_roi_align"
    features = list(features)
    checks.levels(op, features)
    checks.strides(op, features, strides)
    bins = checks.sampling(op, output_size, sampling_ratio)
    canonical_scale = checks.positive(op, "canonical_scale", canonical_scale)
    rois = _rois(op, boxes, features[0], features[0].shape[0], impl)
    finest = round(math.log2(strides[0]))
    levels = _choose("pyramid_levels", rois, impl)(
        rois, finest, len(features), canonical_scale, float(canonical_level)
    )
    scales = [1 / float(stride) for stride in strides]
    run = _choose(op, features[0], impl)
    return run(features, rois, levels, scales, *bins, int(sampling_ratio), bool(aligned))


def pool_regions(
    tokens: Tensor,
    boxes: Tensor | Sequence[Tensor],
    *,
    grid_size: tuple[int, int],
    spatial_scale: float,
    output_size: int | Sequence[int] = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    num_prefix_tokens: int = 0,
    normalize: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Average the tokens of a Vision Transformer over each box: the mean over RoIAlign's bins, without the bins.

    pooled[r, c] = sum_y wy[r, y] * sum_x wx[r, x] * F[y, x, c], with the weights of all samples along an axis merged.

    Args:
        tokens: (B, N, C) floating
            Tokens, row by row of the grid after the prefix; any strides.
        boxes: (R, 5) floating, or B tensors (R_i, 4)
            As for `roi_align`, except that a box that is not finite or has no area gives zeros.
        grid_size: (h, w)
            Rows and columns of the grid; N = num_prefix_tokens + h * w.
        spatial_scale: float
            Tokens per unit of the boxes: 1 / patch size for boxes in pixels.
        output_size: int or (P, Q), default 7
            Bins of the RoIAlign whose mean is taken, at most 65536 along a side.
        sampling_ratio: int, default 2
            As for `roi_align`. output_size=1, sampling_ratio=-1 samples about every token once.
        aligned: bool, default True
            As for `roi_align`.
        num_prefix_tokens: int, default 0
            Tokens before the grid (class token, registers), left out.
        normalize: bool, default False
            Scale each token to norm one before it is averaged.
        impl: "reference" | "native", optional
            Forces an implementation.

    Returns:
        (R, C), dtype of `tokens`, not normalised.

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "pool_regions"
    checks.floating(op, "tokens", tokens, 3)
    bins = checks.sampling(op, output_size, sampling_ratio, least=1)
    scale = checks.positive(op, "spatial_scale", spatial_scale)
    grid = checks.grid(op, tokens, grid_size, num_prefix_tokens)
    run = _choose(op, tokens, impl)
    rois = _rois(op, boxes, tokens, tokens.shape[0], impl)
    return run(
        tokens,
        rois,
        *grid,
        scale,
        *bins,
        int(sampling_ratio),
        bool(aligned),
        checks.whole(num_prefix_tokens),
        bool(normalize),
    )


def score_regions(
    region_embeds: Tensor,
    text_embeds: Tensor,
    *,
    vlm_embeds: Tensor | None = None,
    base: Tensor | None = None,
    temperature: float | Tensor = 0.01,
    vlm_temperature: float | Tensor = 0.01,
    base_weight: float = 0.35,
    novel_weight: float = 0.65,
    renormalize: bool = True,
    objectness: Tensor | None = None,
    objectness_power: float = 3.0,
    impl: str | None = None,
) -> Tensor:
    """Score regions against the labels of an open vocabulary.

    With p = softmax(cos(region, text) / temperature) and z = softmax(cos(vlm, text) / vlm_temperature), both over the
    background and all labels, the score of label j is

        p[j] ** (1 - w[j]) * z[j] ** w[j] / total * objectness ** objectness_power,

    total = p[background] + sum of the products over all labels (1 unless `renormalize`): the background's share comes from
    the detector alone. Without `vlm_embeds` the score is p[j] * objectness ** objectness_power.

    Args:
        region_embeds: (R, C) floating
            The detector's embeddings of the regions, of any norm.
        text_embeds: (1 + n, C) floating
            Embeddings of the vocabulary, of any norm; row 0 is the background.
        vlm_embeds: (R, C) floating, optional
            The frozen tower's embeddings of the same regions (`pool_regions`), of any norm.
        base: (n,) bool, optional
            Labels whose boxes the detector was trained on; None gives novel_weight to every label (transfer).
        temperature: float or () tensor, default 0.01
            Temperature of p, positive. A tensor may be learned; its value is not looked at, for which a GPU would have to wait.
        vlm_temperature: float or () tensor, default 0.01
            Temperature of z, likewise.
        base_weight: float in [0, 1], default 0.35
            Exponent w of z for base labels.
        novel_weight: float in [0, 1], default 0.65
            Exponent w of z for all other labels.
        renormalize: bool, default True
            Divide by total, so that background and labels add up to one.
        objectness: (R,) floating, optional
            How sure it is that the region is an object (centerness), not negative.
        objectness_power: float, default 3
            Exponent of objectness.
        impl: "reference" | "native", optional
            Forces an implementation.

    Returns:
        (R, n) float32 (float64 if an embedding is), without the background. On a GPU, embeddings that are all bfloat16 or all
        float16 are multiplied by tensor cores as they are, exactly and summed in float32; 33 MB hold the products of a block
        of regions, and up to 256 MB those with large vocabularies.

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
    """
    checks.scores(region_embeds, text_embeds, vlm_embeds, base, objectness)
    for name, value in (("temperature", temperature), ("vlm_temperature", vlm_temperature)):
        checks.temperature(name, value)
    for name, value in (("base_weight", base_weight), ("novel_weight", novel_weight)):
        if not 0 <= value <= 1:
            raise ValueError(f"score_regions: {name} must be in [0, 1], got {value}")
    dtype = torch.float64 if torch.float64 in (region_embeds.dtype, text_embeds.dtype) else torch.float32
    tensors = (region_embeds, text_embeds, vlm_embeds, objectness, temperature, vlm_temperature)
    learned = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)
    if learned and impl == "native":
        raise ValueError("score_regions: impl must not be 'native' where gradients are wanted, got 'native'")
    exponent = _exponent(base, text_embeds, dtype, base_weight, novel_weight)
    objectness = None if objectness is None else objectness.to(dtype)
    embeds = [region_embeds, text_embeds, vlm_embeds]
    if len({x.dtype for x in embeds if x is not None}) > 1:
        embeds = [x if x is None else x.to(dtype) for x in embeds]
    temperatures = (
        x.to(text_embeds.device, dtype)
        if isinstance(x, Tensor)
        else torch.full((), x, dtype=dtype, device=text_embeds.device)
        for x in (temperature, vlm_temperature)
    )
    run = _choose("score_regions", region_embeds, impl)
    return run(*embeds, exponent, objectness, *temperatures, float(objectness_power), bool(renormalize))


def _exponent(
    base: Tensor | None, text: Tensor, dtype: torch.dtype, base_weight: float, novel_weight: float
) -> Tensor:
    """Return the exponent of the frozen tower's probability for each label, (n,)."""
    exponent = text.new_full((text.shape[0] - 1,), float(novel_weight), dtype=dtype)
    return exponent if base is None else exponent.masked_fill(base, float(base_weight))


def _choose(op: str, tensor: Tensor, impl: str | None) -> Callable[..., Tensor]:
    return _NATIVE[op] if use_native(op, tensor, impl) else getattr(reference, op)


def _rois(
    op: str, boxes: Tensor | Sequence[Tensor], features: Tensor, batch: int, impl: str | None = None
) -> Tensor:
    """Return boxes as (R, 5), batch index first, float64 where features or boxes are, else float32.

    Image numbers are looked at on the CPU only, and not for the native ops: they look by themselves.
    """
    checks.boxes(op, boxes, features, batch)
    several = not isinstance(boxes, Tensor)
    listed: Sequence[Tensor] = [boxes] if isinstance(boxes, Tensor) else boxes
    wide = torch.float64 in (features.dtype, *(some.dtype for some in listed))
    dtype = torch.float64 if wide else torch.float32
    if not several:
        rois = listed[0].detach().to(dtype)
        if readable(rois) and not use_native(op, features, impl):
            checks.image_numbers(op, rois[:, 0], batch)
        return rois
    if not boxes:
        return torch.zeros(0, 5, dtype=dtype, device=features.device)
    parts = [F.pad(some.detach().to(dtype), (1, 0), value=image) for image, some in enumerate(listed)]
    return torch.cat(parts)
