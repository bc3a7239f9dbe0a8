"""Charts whose axes both are shares: precision over recall, and how often a score comes true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from cfmvit.report.markup import element
from cfmvit.report.svg import INK, LINE, MUTED, SERIES, picture, text, tick_label

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 56.0, 44.0
WIDTH, HEIGHT = 560.0, 400.0

Point = tuple[float, float]


def precision_recall(groups: Mapping[str, Sequence[float]], *, title: str = "") -> Markup:
    """Draw precision over recall, a curve for each group.

    Args:
        groups: precision at recall levels spread evenly from 0 to 1; NaN where there is none, and such a group is left out.

    Returns:
        SVG whose colours follow the page's theme.

    Raises:
        ValueError: no group has a figure.
    """
    lines = {}
    for name, values in groups.items():
        points = [(place / (len(values) - 1), value) for place, value in enumerate(values)]
        lines[name] = [point for point in points if math.isfinite(point[1])]
    shown = {name: points for name, points in lines.items() if points}
    if not shown:
        raise ValueError("precision_recall: groups must hold a finite value, got none")
    parts = _frame(title, "recall", "precision", shown)
    for colour, points in reversed([*zip(SERIES, shown.values())]):  # the first lies on top
        parts.append(_line(points, colour))
    return picture(WIDTH, HEIGHT, parts, title or "precision over recall")


def reliability(groups: Mapping[str, Sequence[tuple[float, float, int]]], *, title: str = "") -> Markup:
    """Draw how often detections of a score are right; on the diagonal scores are probabilities.

    Args:
        groups: (mean score, share that is right, how many) of each bin; larger discs stand for more detections.

    Returns:
        SVG whose colours follow the page's theme.

    Raises:
        ValueError: no group has a detection.
    """
    shown = {name: [b for b in bins if b[2] > 0] for name, bins in groups.items()}
    shown = {name: bins for name, bins in shown.items() if bins}
    if not shown:
        raise ValueError("reliability: groups must hold a detection, got none")
    parts = _frame(title, "score", "right", shown)
    parts.append(_line([(0.0, 0.0), (1.0, 1.0)], MUTED, stroke_dasharray="4 4", stroke_width=1.2))
    most = max(count for bins in shown.values() for _, _, count in bins)
    for colour, (name, bins) in zip(SERIES, shown.items()):
        parts.append(_line([(x, y) for x, y, _ in bins], colour, opacity=0.55))
        for x, y, count in bins:
            label = f"{name}: {count} detections of score {x:.3f}, {100 * y:.1f}% right"
            # A disc's area follows the logarithm: bins differ by powers of ten.
            radius = 2.5 + 5.5 * math.sqrt(math.log1p(count) / math.log1p(most))
            parts.append(
                element("circle", element("title", label), cx=_x(x), cy=_y(y), r=radius, fill=colour)
            )
    return picture(WIDTH, HEIGHT, parts, title or "how often a score comes true")


def _frame(title: str, across: str, up: str, names: Mapping[str, object]) -> list[Markup]:
    parts = [text(0, 16, title, font_size=14, font_weight=600, fill=INK)] if title else []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_y(tick), y2=_y(tick), stroke=LINE))
        parts.append(text(LEFT - 8, _y(tick) + 4, tick_label(tick), text_anchor="end"))
        parts.append(text(_x(tick), HEIGHT - BOTTOM + 19, tick_label(tick), text_anchor="middle"))
    parts.append(text(_x(0.5), HEIGHT - 6, across, text_anchor="middle"))
    parts.append(text(0, TOP - 14, up))
    x = LEFT + 30
    for colour, name in zip(SERIES, names):
        parts.append(element("rect", x=x, y=31, width=14, height=4, rx=2, fill=colour))
        parts.append(text(x + 20, 37, name, fill=MUTED))
        x += 20 + 7.0 * len(name) + 18
    return parts


def _line(points: Sequence[Point], colour: str, **attributes: object) -> Markup:
    data = "M" + " L".join(f"{_x(x):.1f} {_y(y):.1f}" for x, y in points)
    style = {"fill": "none", "stroke": colour, "stroke_width": 2.2, "stroke_linejoin": "round"}
    return element("path", d=data, **{**style, **attributes})


def _x(share: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * share


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
