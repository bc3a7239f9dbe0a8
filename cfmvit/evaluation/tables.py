"""Metrics as a table that people read."""

from __future__ import annotations

import math
from collections.abc import Mapping


def format_table(metrics: Mapping[str, Mapping[str, float]], *, percent: bool = True) -> str:
    """Lay metrics out as a markdown table: a row for each metric, a column for each entry of ``metrics``.

    Args:
        metrics: ``{column: {metric: value}}``, what ``evaluate_results`` returns, or one such inner dict per model to
            set models side by side.
        percent: print 100 x the value with one decimal, as papers do; else four decimals.

    Returns:
        markdown; a dash stands for a missing or undefined value.
    """
    rows = list(dict.fromkeys(name for column in metrics.values() for name in column))
    cells = [["", *metrics]]
    for row in rows:
        cells.append([row, *(_cell(column.get(row, math.nan), percent) for column in metrics.values())])
    widths = [max(len(line[index]) for line in cells) for index in range(len(cells[0]))]
    lines = [_line(line, widths) for line in cells]
    rule = (
        "|"
        + "|".join("-" * (width + 1) + (":" if index else "-") for index, width in enumerate(widths))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: float, percent: bool) -> str:
    if math.isnan(value):
        return "–"
    return f"{100 * value:.1f}" if percent else f"{value:.4f}"


def _line(cells: list[str], widths: list[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "| " + " | ".join([first, *rest]) + " |"
