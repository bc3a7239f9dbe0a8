"""Curves of ``metrics.jsonl`` files as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from cfmvit.report.markup import element
from cfmvit.report.svg import (
    INK,
    LINE,
    MUTED,
    SERIES,
    log_ticks,
    nice_ticks,
    number,
    picture,
    text,
    tick_label,
)

LEFT, RIGHT, TOP, BOTTOM = 52.0, 62.0, 52.0, 44.0
MOST_POINTS = 500


@dataclass
class _Series:
    name: str
    colour: str
    points: list[tuple[float, float]]
    smooth: list[tuple[float, float]]


def curves(
    runs: Mapping[str, str | Path] | str | Path,
    metrics: Sequence[str] = ("loss",),
    *,
    title: str = "",
    log: bool = False,
    smoothing: float = 0.8,
    width: float = 760.0,
    height: float = 320.0,
) -> Markup:
    """Draw metrics over steps, several runs or metrics in one chart.

    Args:
        runs: ``metrics.jsonl`` by the name of its run, or one path.
        metrics: keys of the records; a record without one is passed over, and so are values that are not finite.
        log: logarithmic vertical axis; values that are not positive are left out.
        smoothing: weight of the past in the running mean that is drawn bold over the faint raw values; 0 draws the
            raw values alone.
        width, height: of the drawing, which scales with the page: the smaller, the larger its letters.

    Returns:
        SVG whose colours follow the page's theme.

    Raises:
        ValueError: nothing to draw; the message names the metrics and the files.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"curves: smoothing must be in [0, 1), got {smoothing}")
    from cfmvit.training.metrics import read_metrics  # here, since the page of an evaluation needs no torch

    paths = (
        {"": Path(runs)}
        if isinstance(runs, (str, Path))
        else {name: Path(path) for name, path in runs.items()}
    )
    series: list[_Series] = []
    for run, path in paths.items():
        records = read_metrics(path)
        for metric in metrics:
            pairs = [(record["step"], record[metric]) for record in records if metric in record]
            points = [(float(x), float(y)) for x, y in pairs if math.isfinite(y) and (y > 0 or not log)]
            if points:
                name = " ".join(part for part in (run, metric if len(metrics) > 1 or not run else "") if part)
                smooth = _thin(_running_mean(points, smoothing))
                series.append(_Series(name, SERIES[len(series) % len(SERIES)], _thin(points), smooth))
    if not series:
        where = ", ".join(str(path) for path in paths.values())
        raise ValueError(f"curves: runs must hold finite values of {', '.join(metrics)}, got none in {where}")
    return _chart(series, title, log, (width, height), faint=smoothing > 0)


def _chart(series: list[_Series], title: str, log: bool, size: tuple[float, float], faint: bool) -> Markup:
    width, height = size
    forward: Callable[[float], float] = math.log10 if log else float
    steps = [x for line in series for x, _ in line.points]
    shown = [y for line in series for _, y in (line.points if len(line.points) < 20 else line.smooth)]
    low, high = min(shown), max(shown)
    pad = 0.06 * (forward(high) - forward(low)) or max(1e-6, 0.05 * abs(forward(high)))
    bottom, top = forward(low) - pad, forward(high) + pad
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)

    def x_of(value: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * (value - x_low) / (x_high - x_low)

    def y_of(value: float) -> float:
        share = (forward(value) - bottom) / (top - bottom)
        return height - BOTTOM - (height - TOP - BOTTOM) * min(1.03, max(-0.03, share))

    back = (lambda value: 10**value) if log else float
    y_ticks = log_ticks(back(bottom), back(top)) if log else nice_ticks(bottom, top)
    parts = [text(0, 16, title, font_size=14, font_weight=600, fill=INK)] if title else []
    for tick in y_ticks:
        parts.append(element("line", x1=LEFT, x2=width - RIGHT, y1=y_of(tick), y2=y_of(tick), stroke=LINE))
        parts.append(text(LEFT - 9, y_of(tick) + 4, tick_label(tick), text_anchor="end"))
    for tick in nice_ticks(x_low, x_high):
        parts.append(text(x_of(tick), height - BOTTOM + 20, tick_label(tick), text_anchor="middle"))
    parts.append(text((LEFT + width - RIGHT) / 2, height - 6, "step", text_anchor="middle"))
    for line in series:
        if faint:
            parts.append(_path(line.points, x_of, y_of, line.colour, stroke_width=1, opacity=0.28))
        parts.append(_path(line.smooth, x_of, y_of, line.colour, stroke_width=2.4))
    parts += _end_labels(series, x_of, y_of)
    if len(series) > 1 or not title:
        parts += _legend(series, y=40 if title else 20)
    return picture(width, height, parts, title or ", ".join(line.name for line in series))


def _path(
    points: list[tuple[float, float]],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    colour: str,
    **attributes: object,
) -> Markup:
    places = [f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points]
    if len(places) == 1:
        x, y = places[0].split()
        return element("circle", cx=x, cy=y, r=3, fill=colour)
    data = "M" + " L".join(places)
    return element(
        "path",
        d=data,
        fill="none",
        stroke=colour,
        stroke_linejoin="round",
        stroke_linecap="round",
        **attributes,
    )


def _end_labels(
    series: list[_Series], x_of: Callable[[float], float], y_of: Callable[[float], float]
) -> list[Markup]:
    """The last value at the end of each curve, moved apart where two would touch."""
    parts, lowest = [], -math.inf
    for line in sorted(series, key=lambda item: y_of(item.smooth[-1][1])):
        step, value = line.smooth[-1]
        parts.append(element("circle", cx=x_of(step), cy=y_of(value), r=3.4, fill=line.colour))
        y = max(y_of(value), lowest + 16)
        lowest = y
        parts.append(
            text(x_of(step) + 10, y + 4, number(value), font_size=13, font_weight=600, fill=line.colour)
        )
    return parts


def _legend(series: list[_Series], y: float) -> list[Markup]:
    parts, x = [], LEFT
    for line in series:
        parts.append(element("rect", x=x, y=y - 9, width=14, height=4, rx=2, fill=line.colour))
        parts.append(text(x + 20, y - 3, line.name, fill=MUTED))
        x += 20 + 7.0 * len(line.name) + 22
    return parts


def _running_mean(points: list[tuple[float, float]], weight: float) -> list[tuple[float, float]]:
    """Exponential running mean, corrected for its start, so that it begins at the first value."""
    mean = total = 0.0
    smooth = []
    for step, value in points:
        mean = weight * mean + (1 - weight) * value
        total = weight * total + (1 - weight)
        smooth.append((step, mean / total))
    return smooth


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MOST_POINTS`` points, the last among them."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return points[::-1][::stride][::-1]
