"""A study's plots, one SVG file each."""

from __future__ import annotations

import math
import re
from pathlib import Path

from cfmvit._io import atomic_write
from cfmvit.report import against_cost, bars
from cfmvit.report.against_cost import Point
from cfmvit.study.record import Record
from cfmvit.study.tables import STEP


def write_plots(record: Record, output: Path) -> None:
    """Write ``NAME-FIGURE.svg`` of every figure: bars with their spread, and where steps were timed, the figure over their cost."""
    names = [name for name in record.names() if name != STEP]
    steps = {cell: record.spread(cell, STEP).mean for cell in record.study.cells}
    for name in names:
        found = {cell: record.spread(cell, name) for cell in record.cells}
        found = {cell: value for cell, value in found.items() if value.seeds}
        if not found:  # as of an average precision without a box so far
            continue
        chance = {cell: record.chance(cell, name) for cell in found}
        chart = bars(
            {cell: {name: value.mean} for cell, value in found.items()},
            title=name,
            chance={cell: value for cell, value in chance.items() if not math.isnan(value)},
            spread={cell: {name: value.deviation} for cell, value in found.items()},
        )
        _write(output / f"{record.name}-{_slug(name)}.svg", chart)
        points = {
            cell: Point(step, found[cell].mean, found[cell].deviation)
            for cell, step in steps.items()
            if cell in found and not math.isnan(step)
        }
        if len(points) > 1:
            chart = against_cost(points, title=f"{name}, over the cost of a step", cost="ms a step")
            _write(output / f"{record.name}-{_slug(name)}-cost.svg", chart)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _write(path: Path, chart: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(chart)
