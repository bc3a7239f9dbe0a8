"""The roofline: each measured op at its arithmetic per byte, under what the memory and the matrix units allow."""

from __future__ import annotations

import math
from string import ascii_uppercase
from typing import Any

from markupsafe import Markup

from cfmvit.bench.gate import OURS
from cfmvit.bench.tables import SHORT, duration
from cfmvit.report.markup import element
from cfmvit.report.svg import INK, LINE, SERIES, picture, text

WIDTH, HEIGHT = 980.0, 480.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 310.0, 66.0, 50.0
STRIP = 190.0  # the left part, for ops without arithmetic
LEGEND = WIDTH - RIGHT + 84


def roofline(record: dict[str, Any]) -> Markup:
    """Draw a record as SVG: flops per byte across, flops per second up; the roof is what the run itself measured.

    Of each op stands there the whole of it, forward and backward, or the forward pass alone where it has no other; below it
    hangs the slowest peer. Ops that only move data have no arithmetic to speak of: they stand under a flat roof at the left, by
    their share of the copy bandwidth.
    """
    chosen = _chosen(record["results"])
    plot = _Plot(record["ceilings"], [x for x, _ in chosen])
    parts = [text(LEFT, 22, "Roofline", font_size=15, font_weight=600, fill=INK)]
    machine = record["machine"]
    where = (
        machine["device"]
        if machine["device_type"] == "cuda"
        else f"{machine['device']}, {machine['threads']} threads"
    )
    parts += [text(LEFT, 42, f"{where}, torch {machine['torch']}"), *plot.axes()]
    letters = {op: letter for op, letter in zip(dict.fromkeys(x["op"] for x, _ in chosen), ascii_uppercase)}
    dtypes = list(dict.fromkeys(x["dtype"] for x, _ in chosen))
    for x, place in chosen:
        parts += plot.point(x, letters[x["op"]], SERIES[dtypes.index(x["dtype"]) % len(SERIES)], place)
    for row, (op, letter) in enumerate(letters.items()):
        y = TOP + 8 + 19 * row
        parts += [
            text(LEGEND, y, letter, font_weight=650, fill=INK),
            text(LEGEND + 20, y, op, fill=INK),
        ]
    for row, dtype in enumerate(dtypes):
        y = HEIGHT - BOTTOM - 18 * (len(dtypes) - row)
        parts += [
            element("circle", cx=LEGEND + 4, cy=y - 4, r=6, fill=SERIES[row % len(SERIES)]),
            text(LEGEND + 20, y, dtype),
        ]
    parts.append(text(LEGEND, HEIGHT - BOTTOM + 8, "small ring: slowest peer"))
    return picture(WIDTH, HEIGHT, parts, "Roofline of the ops")


def _chosen(results: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Return one result of each op, size and dtype, and a place in [0, 1) for those without arithmetic."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for x in results:
        which = (x["op"], x["size"], x["dtype"])
        if x["family"] != "calls" and (
            x["pass"] == "both" or (x["pass"] == "forward" and which not in found)
        ):
            found[which] = x
    flat = [x for x in found.values() if not x["flops"]]
    return [(x, (flat.index(x) + 0.5) / len(flat) if not x["flops"] else 0.0) for x in found.values()]


class _Plot:
    def __init__(self, ceilings: dict[str, Any], results: list[dict[str, Any]]) -> None:
        self.bandwidth, self.rates = ceilings["copy_bytes_per_s"], ceilings["flops_per_s"]
        ridge = max(self.rates.values()) / self.bandwidth
        intensities = [x["flops"] / x["bytes"] for x in results if x["flops"]] + [ridge]
        self.x_low, self.x_high = (
            math.floor(math.log10(min(intensities))),
            math.ceil(math.log10(max(intensities))),
        )
        self.y_high = math.ceil(math.log10(max(self.rates.values())))
        speeds = [y for x in results if x["flops"] for y, _ in _speeds(x, x["flops"])]
        self.y_low = math.floor(math.log10(min([*speeds, self.bandwidth * 10.0**self.x_low])))
        self.start = LEFT + STRIP + 20 if any(not x["flops"] for x in results) else LEFT

    def x(self, intensity: float) -> float:
        share = (math.log10(intensity) - self.x_low) / (self.x_high - self.x_low)
        return self.start + share * (WIDTH - RIGHT - self.start)

    def y(self, speed: float) -> float:
        share = (math.log10(speed) - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def strip_y(self, share: float) -> float:
        """Place a share of the copy bandwidth on a scale from 1 % to 200 %."""
        low, high = math.log10(0.01), math.log10(2)
        part = (min(max(math.log10(share), low), high) - low) / (high - low)
        return HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)

    def axes(self) -> list[Markup]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for power in range(self.y_low, self.y_high + 1):
            y = self.y(10.0**power)
            parts.append(element("line", x1=self.start, x2=right, y1=y, y2=y, stroke=LINE))
            parts.append(text(right + 4, y + 4, _flops(power), font_size=10))
        for power in range(self.x_low, self.x_high + 1):
            x = self.x(10.0**power)
            parts.append(element("line", x1=x, x2=x, y1=TOP, y2=bottom, stroke=LINE))
            parts.append(text(x, bottom + 18, f"{10.0**power:g}", text_anchor="middle"))
        parts.append(text((self.start + right) / 2, bottom + 38, "flops per byte", text_anchor="middle"))
        roof = {"fill": "none", "stroke": INK, "stroke_width": 1.6}
        for name, rate in self.rates.items():
            ridge = min(max(rate / self.bandwidth, 10.0**self.x_low), 10.0**self.x_high)
            low = 10.0**self.x_low
            points = [(low, self.bandwidth * low), (ridge, rate), (10.0**self.x_high, rate)]
            parts.append(
                element(
                    "polyline", points=" ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points), **roof
                )
            )
            parts.append(text(right - 4, self.y(rate) - 5, SHORT[name], text_anchor="end", font_size=11))
        if self.start > LEFT:
            for share in (0.01, 0.1, 1.0):
                y = self.strip_y(share)
                ink = INK if share == 1 else LINE
                parts.append(
                    element("line", x1=LEFT, x2=LEFT + STRIP, y1=y, y2=y, stroke=ink, stroke_width=1.2)
                )
                parts.append(text(LEFT - 6, y + 4, f"{share:.0%}", text_anchor="end"))
            label = f"share of copying's {self.bandwidth / 1e9:.3g} GB/s"
            parts.append(text(LEFT + STRIP / 2, bottom + 38, label, text_anchor="middle"))
        return parts

    def point(self, result: dict[str, Any], letter: str, colour: str, place: float) -> list[Markup]:
        if result["flops"]:
            x = self.x(result["flops"] / result["bytes"])
            marks = [(self.y(speed), name) for speed, name in _speeds(result, result["flops"])]
        else:
            x = LEFT + STRIP * place
            speeds = _speeds(result, result["bytes"])
            marks = [(self.strip_y(speed / self.bandwidth), name) for speed, name in speeds]
        ours = marks[0][0]
        lowest = max(marks)
        parts = []
        if lowest[0] > ours:
            parts.append(
                element("line", x1=x, x2=x, y1=ours, y2=lowest[0], stroke=colour, stroke_opacity=0.45)
            )
            ring = {"r": 3.5, "fill": "none", "stroke": colour, "stroke_width": 1.5}
            parts.append(element("circle", element("title", lowest[1]), cx=x, cy=lowest[0], **ring))
        label = f"{result['op']} {result['dtype']} {result['pass']}: {marks[0][1]}"
        parts.append(element("circle", element("title", label), cx=x, cy=ours, r=8, fill=colour))
        parts.append(
            text(x, ours + 3.5, letter, text_anchor="middle", font_size=10, font_weight=700, fill="#fff")
        )
        return parts


def _speeds(result: dict[str, Any], work: int) -> list[tuple[float, str]]:
    """Return work per second and what it belongs to, ours first."""
    timed = {name: x["seconds"]["p50"] for name, x in result["implementations"].items() if "seconds" in x}
    order = sorted(timed, key=lambda name: name != OURS)
    return [(work / timed[name], f"{name} {duration(timed[name])}") for name in order]


def _flops(power: int) -> str:
    unit = {0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}[3 * (power // 3)]
    return f"{10 ** (power % 3)} {unit}FLOP/s"
