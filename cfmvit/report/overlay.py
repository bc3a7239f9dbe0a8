"""Detections drawn over their image; novel categories stand out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cfmvit._require import require
from cfmvit.report.colours import Colour, category_colour, ink_on
from cfmvit.report.fonts import font
from cfmvit.report.images import to_picture, within

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Box = tuple[float, float, float, float]

_SMOOTH = 2  # shapes are drawn at twice the size and reduced, since PIL draws them without smoothing


def overlay(
    image: Any,
    detections: Any,
    novel: Collection[str] = (),
    *,
    min_side: int = 512,
    threshold: float = 0.0,
    max_detections: int = 20,
) -> Picture:
    """Draw boxes, masks and labels.

    Novel categories have a thick bright box and a star before the name, base categories a thin muted box. A category
    has the same colour in every picture.

    Args:
        image: PIL image, path, uint8 array (H, W, 3) or tensor (3, H, W).
        detections: has ``boxes`` (n, 4) xyxy in pixels of ``image`` and ``labels`` (n names); where present also
            ``scores`` (n,) and ``masks``, n of (H, W) bool. Ground truth has no scores and is drawn without.
        novel: names of the categories that no box was seen of in training.
        min_side: small images are enlarged until their longer side has this many pixels; those of more than 2048 are
            reduced to that.
        threshold: detections of a lower score are left out.
        max_detections: at most so many, those of the highest score.

    Raises:
        ValueError: lengths that do not fit, NaN or inverted boxes.
    """
    pillow = require("PIL.Image", extra="models")
    picture, factor = within(to_picture(image, "overlay"), min_side)
    boxes, scores, labels, masks = _fields(detections)
    chosen = _chosen(scores, len(labels), threshold, max_detections)
    # Base first, so that novel boxes lie on top; within a group the best score is drawn last.
    chosen.sort(key=lambda row: (labels[row] in novel, scores[row] if scores is not None else 0.0))

    canvas = np.asarray(picture, dtype=np.float32)
    if masks is not None:
        canvas = canvas.copy()
        for row in chosen:
            colour = category_colour(labels[row], vivid=labels[row] in novel)
            _outline(canvas, _array(masks[row]), colour, 0.9 if labels[row] in novel else 0.5)
    picture = pillow.fromarray(canvas.round().astype(np.uint8))

    size = (picture.width * _SMOOTH, picture.height * _SMOOTH)
    layer = pillow.new("RGBA", size, (0, 0, 0, 0))
    pen = _Pen(layer, unit=_SMOOTH * max(picture.size) / 512)
    for row in chosen:
        pen.box(_scaled(boxes[row], factor * _SMOOTH), labels[row], labels[row] in novel)
    taken: list[Box] = []
    for row in reversed(chosen):
        score = None if scores is None else float(scores[row])
        taken.append(
            pen.chip(_scaled(boxes[row], factor * _SMOOTH), labels[row], score, labels[row] in novel, taken)
        )
    if (drawn := layer.getbbox()) is not None:
        left, top, right, bottom = (
            drawn[0] // _SMOOTH,
            drawn[1] // _SMOOTH,
            *(-(-end // _SMOOTH) for end in drawn[2:]),
        )
        layer = layer.crop([_SMOOTH * edge for edge in (left, top, right, bottom)]).reduce(_SMOOTH)
        ground = picture.crop((left, top, right, bottom)).convert("RGBA")
        picture.paste(pillow.alpha_composite(ground, layer).convert("RGB"), (left, top))
    return picture


def gallery(pictures: Sequence[Any], *, columns: int = 4, cell: int = 256, gap: int = 8) -> Picture:
    """Lay pictures out in a grid of square cells on white, each as large as its cell allows."""
    pillow = require("PIL.Image", extra="models")
    if not pictures:
        raise ValueError("gallery: pictures must not be empty")
    rows = math.ceil(len(pictures) / columns)
    columns = min(columns, len(pictures))
    sheet = pillow.new("RGB", (columns * (cell + gap) - gap, rows * (cell + gap) - gap), "white")
    for index, item in enumerate(pictures):
        picture = to_picture(item, "gallery")
        factor = cell / max(picture.size)
        picture = picture.resize(
            (max(1, round(picture.width * factor)), max(1, round(picture.height * factor))),
            pillow.Resampling.LANCZOS,
        )
        x = index % columns * (cell + gap) + (cell - picture.width) // 2
        y = index // columns * (cell + gap) + (cell - picture.height) // 2
        sheet.paste(picture, (x, y))
    return sheet


class _Pen:
    """Draws at ``_SMOOTH`` times the picture's size; ``unit`` is one pixel of a 512-pixel picture."""

    def __init__(self, layer: Picture, unit: float) -> None:
        self._draw = require("PIL.ImageDraw", extra="models").Draw(layer)
        self._size = layer.size
        self._unit = unit

    def box(self, box: Box, label: str, novel: bool) -> None:
        width = round((4.5 if novel else 1.6) * self._unit)
        edge = max(1, round(1.2 * self._unit))
        colour = category_colour(label, vivid=novel)
        radius = 3 * self._unit
        shade = (0, 0, 0, 170 if novel else 110)
        outer = (box[0] - edge, box[1] - edge, box[2] + edge, box[3] + edge)
        # A dark edge on both sides keeps the line visible on any ground.
        self._draw.rounded_rectangle(outer, radius, outline=shade, width=width + 2 * edge)
        self._draw.rounded_rectangle(box, radius, outline=(*colour, 255), width=width)

    def chip(self, box: Box, label: str, score: float | None, novel: bool, taken: list[Box]) -> Box:
        """Draw a label near its box where it covers the least of the labels drawn before; return its place."""
        text = label if score is None else f"{label} {100 * score:.0f}"
        typeface = font((20 if novel else 17) * self._unit, text)
        pad, star = 6 * self._unit, 20 * self._unit if novel else 0.0
        width, height = typeface.getlength(text) + 2 * pad + star, 1.4 * typeface.size
        place = self._place(box, width, height, taken)
        colour = category_colour(label, vivid=novel)
        ink = ink_on(colour)
        shadow = tuple(value + self._unit for value in place)
        self._draw.rounded_rectangle(shadow, 5 * self._unit, fill=(0, 0, 0, 110))
        self._draw.rounded_rectangle(place, 5 * self._unit, fill=(*colour, 255 if novel else 225))
        middle = (place[1] + place[3]) / 2
        if novel:
            self._star(place[0] + pad + 8 * self._unit, middle, 8.5 * self._unit, ink)
        self._draw.text((place[0] + pad + star, middle), text, font=typeface, fill=ink, anchor="lm")
        return place

    def _place(self, box: Box, width: float, height: float, taken: list[Box]) -> Box:
        gap = 3 * self._unit
        x0, y0, x1, y1 = box
        corners = [
            (x0, y0 - height - gap),
            (x0, y1 + gap),
            (x0 + gap, y0 + gap),
            (x0 + gap, y1 - height - gap),
            (x1 - width, y0 - height - gap),
            (x1 - width, y1 + gap),
        ]
        best: tuple[float, Box] | None = None
        for order, (x, y) in enumerate(corners):
            # Inside the picture, even where the box reaches its edge.
            x = min(max(x, 0), max(0, self._size[0] - width))
            inside = min(max(y, 0), self._size[1] - height)
            place = (x, inside, x + width, inside + height)
            cost = sum(_common(place, other) for other in taken) + abs(inside - y) * width + order
            if best is None or cost < best[0]:
                best = (cost, place)
        assert best is not None
        return best[1]

    def _star(self, x: float, y: float, radius: float, ink: Colour) -> None:
        points = []
        for corner in range(10):
            reach = radius if corner % 2 == 0 else 0.42 * radius
            angle = math.pi * (corner / 5 - 0.5)
            points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        self._draw.polygon(points, fill=ink)


def _fields(detections: Any) -> tuple[np.ndarray, np.ndarray | None, list[str], Any]:
    labels = [str(label) for label in detections.labels]
    boxes = _array(detections.boxes).astype(np.float64).reshape(-1, 4)
    scores, masks = getattr(detections, "scores", None), getattr(detections, "masks", None)
    for name, value in (("boxes", boxes), ("scores", scores), ("masks", masks)):
        if value is not None and len(value) != len(labels):
            raise ValueError(f"overlay: {name} must have one row per label {len(labels)}, got {len(value)}")
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"overlay: boxes must be finite xyxy with x1 <= x2 and y1 <= y2, got {boxes[wrong][0].tolist()}"
        )
    return boxes, None if scores is None else _array(scores), labels, masks


def _array(value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16


def _chosen(scores: np.ndarray | None, count: int, threshold: float, limit: int) -> list[int]:
    if scores is None:
        return list(range(count))[:limit]
    order = np.argsort(-scores, kind="stable")
    return [int(row) for row in order if scores[row] >= threshold][:limit]


def _outline(canvas: np.ndarray, mask: np.ndarray, colour: Colour, strength: float) -> None:
    """Draw a mask's edge, and a breath of colour inside: the object's own colours must stay to be seen."""
    pillow = require("PIL.Image", extra="models")
    grid = pillow.fromarray((np.asarray(mask) > 0).astype(np.uint8) * 255).resize(
        (canvas.shape[1], canvas.shape[0]), pillow.Resampling.BILINEAR
    )
    if (box := grid.getbbox()) is None:
        return
    # The edge is two pixels wide, so a margin of them is enough.
    left, top, right, bottom = (max(0, box[0] - 2), max(0, box[1] - 2), box[2] + 2, box[3] + 2)
    part = canvas[top:bottom, left:right]
    grid = grid.crop((left, top, left + part.shape[1], top + part.shape[0]))
    inside = np.asarray(grid)
    inner = _least(_least(inside, 2).T, 2).T
    share = [level.astype(np.float32)[..., None] / 255 for level in (inside, inner)]
    part += strength * (share[0] - 0.9 * share[1]) * (np.array(colour, dtype=np.float32) - part)


def _least(levels: np.ndarray, reach: int) -> np.ndarray:
    """Return the least value of each row's neighbours up to ``reach`` away in the column, itself included."""
    padded = np.pad(levels, ((reach, reach), (0, 0)), mode="edge")
    return np.minimum.reduce([padded[start : start + len(levels)] for start in range(2 * reach + 1)])


def _scaled(box: np.ndarray, factor: float) -> Box:
    x0, y0, x1, y1 = (float(value) * factor for value in box)
    return x0, y0, x1, y1


def _common(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
