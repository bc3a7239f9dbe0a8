"""Figures against what they cost, with their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from cfmvit.report.markup import element
from cfmvit.report.svg import INK, LINE, MUTED, SERIES, nice_ticks, picture, text, tick_label

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760.0, 340.0, 52.0, 150.0, 40.0, 44.0
LETTER, LINE_HEIGHT = 7.0, 13.0  # of a name


class Point(NamedTuple):
    """One variant: its cost, its figure, and how far that is spread (NaN where it is not known)."""

    cost: float
    value: float
    spread: float = math.nan


def against_cost(points: Mapping[str, Point], *, title: str, cost: str, percent: bool = True) -> Markup:
    """Draw named points joined in the order of their cost, each with a whisker of its spread.

    Args:
        points: by name.
        cost: what the horizontal axis shows, with its unit.
        percent: values are fractions and written as percentages.

    Returns:
        SVG whose colours follow the page's theme.

    Raises:
        ValueError: no point, or one that is not finite.
    """
    if not points or not all(math.isfinite(p.cost) and math.isfinite(p.value) for p in points.values()):
        raise ValueError(f"against_cost: points must be finite, one at least, got {dict(points)}")
    unit = 100.0 if percent else 1.0
    ordered = sorted(points.items(), key=lambda item: item[1].cost)
    reach = [unit * p.spread if math.isfinite(p.spread) else 0.0 for _, p in ordered]
    values, costs = [unit * p.value for _, p in ordered], [p.cost for _, p in ordered]
    low, high = _padded(min(v - r for v, r in zip(values, reach)), max(v + r for v, r in zip(values, reach)))
    first, last = _padded(costs[0], costs[-1])

    def x_of(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - first) / (last - first)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [text(0, 16, title, font_size=14, font_weight=600, fill=INK)]
    for tick in nice_ticks(low, high):
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y_of(tick), y2=y_of(tick), stroke=LINE))
        parts.append(text(LEFT - 9, y_of(tick) + 4, tick_label(tick), text_anchor="end"))
    for tick in nice_ticks(first, last):
        parts.append(text(x_of(tick), HEIGHT - BOTTOM + 20, tick_label(tick), text_anchor="middle"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, cost, text_anchor="middle"))
    line = "M" + " L".join(f"{x_of(c):.1f} {y_of(v):.1f}" for c, v in zip(costs, values))
    parts.append(element("path", d=line, fill="none", stroke=MUTED, stroke_width=1, opacity=0.6))
    names, xs, ys = [name for name, _ in ordered], list(map(x_of, costs)), list(map(y_of, values))
    for index, (name, x, y, value, r) in enumerate(zip(names, xs, ys, values, reach)):
        colour = SERIES[index % len(SERIES)]
        parts.append(element("line", x1=x, x2=x, y1=y_of(value - r), y2=y_of(value + r), stroke=colour))
        parts.append(element("circle", element("title", name), cx=x, cy=y, r=4.5, fill=colour))
    ends = [x + 9 + LETTER * len(name) for name, x in zip(names, xs)]
    heights = _apart(xs, ys, ends)
    parts += [text(x + 9, y + 4, name, fill=INK) for name, x, y in zip(names, xs, heights)]
    return picture(max(WIDTH, *ends), max(HEIGHT, max(heights) + LINE_HEIGHT), parts, title)


def _apart(xs: Sequence[float], ys: Sequence[float], ends: Sequence[float]) -> list[float]:
    """Return the heights of labels from ``xs`` to ``ends`` at ``ys``: each that would lie on another is moved below it."""
    places = list(ys)
    order = sorted(range(len(ys)), key=ys.__getitem__)
    for place, one in enumerate(order):
        for other in order[:place]:
            if xs[one] < ends[other] and xs[other] < ends[one]:
                places[one] = max(places[one], places[other] + LINE_HEIGHT)
    return places


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad
