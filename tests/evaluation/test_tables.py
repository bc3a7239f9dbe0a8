"""The markdown table."""

from __future__ import annotations

import math

from cfmvit.evaluation import format_table


def test_table() -> None:
    table = format_table({"bbox": {"AP": 0.123456, "APr": math.nan}, "segm": {"AP": 1.0}})
    assert table.splitlines() == [
        "|     | bbox |  segm |",
        "|-----|-----:|------:|",
        "| AP  | 12.3 | 100.0 |",
        "| APr |    – |     – |",
    ]


def test_fractions() -> None:
    assert "| 0.1235 |" in format_table({"bbox": {"AP": 0.123456}}, percent=False)
