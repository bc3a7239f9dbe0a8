"""Bars: a handful of figures side by side, with a line for chance."""

from __future__ import annotations

import math
from collections.abc import Mapping

from markupsafe import Markup

from cfmvit.report.markup import element
from cfmvit.report.svg import INK, LINE, MUTED, SERIES, nice_ticks, number, picture, text, tick_label

WIDTH, LEFT, RIGHT, TOP = 760.0, 150.0, 70.0, 44.0
BAR, GAP, GROUP_GAP = 22.0, 5.0, 20.0
LETTER = 7.6  # width of one of a group's label, about


def bars(
    groups: Mapping[str, Mapping[str, float]],
    *,
    title: str = "",
    percent: bool = True,
    chance: Mapping[str, float] | None = None,
    spread: Mapping[str, Mapping[str, float]] | None = None,
) -> Markup:
    """Draw horizontal bars.

    Args:
        groups: ``{group: {series: value}}``, for example ``{"novel AP50": {"pretrained": 0.2, "from scratch": 0.01}}``.
            Values that are NaN are written as a dash.
        percent: values are fractions and written as percentages.
        chance: ``{group: value}``: a dashed mark on the bars of a group, where guessing would end.
        spread: ``{group: {series: value}}``: a whisker from so much below a bar's end to so much above it; NaN has none.

    Returns:
        SVG whose colours follow the page's theme.
    """
    chance, spread = chance or {}, spread or {}
    reach = {label: {name: _reach(spread, label, name) for name in group} for label, group in groups.items()}
    values = [v + reach[label][name] for label, group in groups.items() for name, v in group.items()]
    values += chance.values()
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise ValueError("bars: groups must hold a finite value, got none")
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    colours = {name: SERIES[index % len(SERIES)] for index, name in enumerate(names)}
    high = max(finite) * 1.08 or 1.0
    scale = (WIDTH - LEFT - RIGHT) / high
    unit = 100.0 if percent else 1.0

    body: list[Markup] = []
    y = TOP + (22 if len(names) > 1 else 0)
    first = y
    for label, group in groups.items():
        height = len(group) * (BAR + GAP) - GAP
        body.append(
            text(
                LEFT - 14,
                y + height / 2 + 4,
                label,
                text_anchor="end",
                fill=INK,
                font_size=13,
                font_weight=600,
            )
        )
        for index, (name, value) in enumerate(group.items()):
            mark = LEFT + scale * chance[label] if label in chance else None
            whisker = scale * reach[label][name]
            body += _bar(y + index * (BAR + GAP), value, scale, colours[name], unit, name, mark, whisker)
        if label in chance:
            body += _mark(LEFT + scale * chance[label], y, height, f"chance {number(unit * chance[label])}")
        y += height + GROUP_GAP
    grid = []
    for tick in nice_ticks(0, high * unit):
        x = LEFT + scale * tick / unit
        grid.append(element("line", x1=x, x2=x, y1=first - 6, y2=y - GROUP_GAP + 6, stroke=LINE))
        grid.append(text(x, y + 8, tick_label(tick), text_anchor="middle"))
    head = [text(0, 18, title, font_size=14, font_weight=600, fill=INK)] if title else []
    if len(names) > 1:
        x = LEFT
        for name in names:
            head.append(element("rect", x=x, y=32, width=12, height=12, rx=3, fill=colours[name]))
            head.append(text(x + 18, 42, name))
            x += 18 + 7.0 * len(name) + 24
    beyond = max(0.0, LETTER * max(map(len, groups)) + 14 - LEFT)  # of the longest label
    return picture(WIDTH, y + 16, [*head, *grid, *body], title or ", ".join(groups), left=beyond)


def _reach(spread: Mapping[str, Mapping[str, float]], label: str, name: str) -> float:
    """Return by how much a whisker reaches beyond its bar."""
    value = spread.get(label, {}).get(name, 0.0)
    return value if math.isfinite(value) else 0.0


def _bar(
    y: float,
    value: float,
    scale: float,
    colour: str,
    unit: float,
    name: str,
    mark: float | None,
    whisker: float,
) -> list[Markup]:
    if not math.isfinite(value):
        return [text(LEFT + 6, y + BAR - 6, "–")]
    width = max(2.0, scale * value)
    label = f"{unit * value:.1f}" if unit == 100 else number(value)
    bar = element(
        "rect", element("title", f"{name}: {label}"), x=LEFT, y=y, width=width, height=BAR, rx=4, fill=colour
    )
    parts = [bar]
    x = LEFT + width + 8
    if whisker:
        middle, ends = y + BAR / 2, (max(LEFT, LEFT + width - whisker), LEFT + width + whisker)
        style = {"stroke": INK, "stroke_width": 1.6}
        parts.append(element("line", x1=ends[0], x2=ends[1], y1=middle, y2=middle, **style))
        parts += [element("line", x1=end, x2=end, y1=middle - 5, y2=middle + 5, **style) for end in ends]
        x += whisker
    if mark is not None and x - 8 <= mark <= x + 9 * len(label):
        x = mark + 8  # the figure steps past the mark for chance
    return [*parts, text(x, y + BAR - 6, label, fill=INK, font_size=14, font_weight=650)]


def _mark(x: float, y: float, height: float, label: str) -> list[Markup]:
    style = {"stroke": INK, "stroke_width": 1.6, "stroke_dasharray": "4 3"}
    line = element("line", element("title", label), x1=x, x2=x, y1=y - 4, y2=y + height + 4, **style)
    return [line, text(x + 5, y + height + 14, label, font_size=11, fill=MUTED)]
