"""Where in an image a text is found: cosine of tokens with a text embedding, as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cfmvit._require import require
from cfmvit.report.colours import heat
from cfmvit.report.fonts import font
from cfmvit.report.images import to_picture, within

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def cosine_map(tokens: Any, text_embedding: Any, grid: tuple[int, int]) -> np.ndarray:
    """Cosine of each token with a text, (h, w) float32; a zero token has cosine 0.

    Args:
        tokens: (h * w, C), row-major: image tokens, or the decoder's outputs in the joint space.
        text_embedding: (C,), of any norm.
        grid: h, w.

    Raises:
        ValueError: shapes that do not fit, NaN.
    """
    tokens, text = _array(tokens), _array(text_embedding)
    if tokens.ndim != 2 or len(tokens) != grid[0] * grid[1]:
        raise ValueError(
            f"similarity_map: tokens must have shape ({grid[0]} * {grid[1]}, C), got {tuple(tokens.shape)}"
        )
    if text.shape != tokens.shape[1:]:
        raise ValueError(
            f"similarity_map: text_embedding must have shape ({tokens.shape[1]},), got {tuple(text.shape)}"
        )
    if not (np.isfinite(tokens).all() and np.isfinite(text).all()):
        raise ValueError("similarity_map: tokens and text_embedding must be finite, got NaN or infinity")
    norms = np.linalg.norm(tokens, axis=1) * np.linalg.norm(text)
    return (tokens @ text / np.maximum(norms, 1e-12)).reshape(grid)


def similarity_map(
    image: Any,
    tokens: Any,
    text_embedding: Any,
    grid: tuple[int, int],
    *,
    limits: tuple[float, float] | None = None,
    min_side: int = 512,
) -> Picture:
    """Lay the similarity of an image's tokens to a text over the image, with a colour bar.

    Args:
        image: PIL image, path, uint8 array (H, W, 3) or tensor (3, H, W); the grid covers all of it.
        tokens, text_embedding, grid: see ``cosine_map``.
        limits: cosines of the darkest and the brightest colour; the map's own range by default. Give the same limits
            to maps that are to be compared.
        min_side: small images are enlarged until their longer side has this many pixels.
    """
    pillow = require("PIL.Image", extra="models")
    values = cosine_map(tokens, text_embedding, grid)
    low, high = limits if limits is not None else (float(values.min()), float(values.max()))
    picture, _ = within(to_picture(image, "similarity_map"), min_side)
    level = (values - low) / max(high - low, 1e-6)
    smooth = pillow.fromarray(level.astype(np.float32)).resize(picture.size, pillow.Resampling.BICUBIC)
    level = np.clip(np.asarray(smooth), 0, 1)[..., None]
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    # The picture shows through everywhere, least where the text is found, so that the place can be recognised.
    alpha = 0.40 + 0.42 * level
    blend = grey * 0.85 * (1 - alpha) + heat(level[..., 0]) * alpha
    return _with_bar(pillow.fromarray(blend.round().clip(0, 255).astype(np.uint8)), low, high)


def _with_bar(picture: Picture, low: float, high: float) -> Picture:
    pillow = require("PIL.Image", extra="models")
    unit = max(picture.size) / 512
    bar, margin, text = (round(size * unit) for size in (18, 8, 62))
    sheet = pillow.new("RGB", (picture.width + margin + bar + text, picture.height), (15, 15, 18))
    sheet.paste(picture, (0, 0))
    ramp = heat(np.linspace(1, 0, picture.height))[:, None].repeat(bar, axis=1)
    sheet.paste(pillow.fromarray(ramp), (picture.width + margin, 0))
    draw = require("PIL.ImageDraw", extra="models").Draw(sheet)
    x = picture.width + margin + bar + round(4 * unit)
    ends = [
        (high, "la", 2 * unit),
        ((low + high) / 2, "lm", picture.height / 2),
        (low, "ld", picture.height - 2 * unit),
    ]
    for value, anchor, y in ends:
        draw.text((x, y), f"{value:.2f}", font=font(20 * unit), fill=(235, 235, 235), anchor=anchor)
    return sheet


def _array(value: Any) -> np.ndarray:
    array = value.detach().float().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    return array.astype(np.float32)
