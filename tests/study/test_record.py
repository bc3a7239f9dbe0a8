"""Spread and paired differences by hand, and the tables made of them."""

from __future__ import annotations

import json
import math
import statistics

import pytest

from cfmvit.study import Cell, Settings, Study
from cfmvit.study.record import Record
from cfmvit.study.tables import markdown

OURS, THEIRS = (0.30, 0.50, 0.40), (0.20, 0.42, 0.31)


@pytest.fixture
def record() -> Record:
    study = Study("A title", "A question?", {"ours": [], "theirs": []}, "ours", compare=(("ours", "theirs"),))
    record = Record("name", study)
    for cell, values in {"ours": OURS, "theirs": THEIRS}.items():
        for seed, value in enumerate(values):
            figures = {"regions 1x": value, "step, ms": 100 * value}
            done = {"values": figures, "chance": {"regions 1x": 0.125}, "device": "CPU", "torch": "2"}
            record.add(Cell(cell, seed, Settings()), done)
    return record


def test_differences_are_paired(record: Record) -> None:
    found = record.difference("ours", "theirs", "regions 1x")
    each = [a - b for a, b in zip(OURS, THEIRS)]
    assert found.mean == pytest.approx(0.09)
    assert found.error == pytest.approx(statistics.stdev(each) / math.sqrt(3))
    assert found.margin == pytest.approx(4.30 * found.error)
    # The cells overlap by far, their difference does not reach zero.
    assert record.spread("theirs", "regions 1x").deviation > found.mean
    assert "**+9.0 ± 0.6**" in markdown(record)
    record.cells["theirs"][2]["values"]["regions 1x"] = None
    assert record.difference("ours", "theirs", "regions 1x").seeds == 2


def test_the_table(record: Record) -> None:
    table = markdown(record)
    assert "| ours | 40.0 ± 10.0 | 40.0 ± 10.0 |" in table, "percentages, but for milliseconds"
    assert "| chance | 12.5 | – |" in table
    record.cells["theirs"][0]["chance"] = {"regions 1x": 0.005}
    assert "| chance | 0.5 to 12.5 | – |" in markdown(record), "of cells that are measured on other data"
    assert "Means over 3 of 3 seeds" in table


def test_a_name_that_holds_a_bar(record: Record) -> None:
    record.study.cells["a | b"] = []
    record.cells["a | b"] = record.cells["ours"]
    assert r"| a \| b | 40.0 ± 10.0 |" in markdown(record)


def test_without_figures_there_is_no_table(record: Record) -> None:
    for seeds in record.cells.values():
        for seed in seeds:
            seeds[seed] = {"error": "ValueError: no", "device": "CPU", "torch": "2"}
    assert not [line for line in markdown(record).splitlines() if line.startswith("|")]
    assert "- ours, seed 0: ValueError: no" in markdown(record)
    assert "Differences" not in markdown(record)


def test_one_seed_proves_nothing(record: Record) -> None:
    for seeds in record.cells.values():
        del seeds[1], seeds[2]
    assert "| ours − theirs | +10.0 |" in markdown(record)
    assert "Means over 1 of 3 seeds" in markdown(record)


def test_a_page_has_room_for_each_table(record: Record) -> None:
    """Figures of a kind stand together, in whatever order they came, and rows without any of them are left out."""
    kinds = ("pointing", "regions", "AP50")
    for number in range(12):
        for kind in kinds:
            record.cells["ours"][0]["values"][f"{kind} {number % 4}{'abc'[number // 4]}"] = 0.25
    assert "step, ms" in record.names()
    heads = [line for line in markdown(record).splitlines() if line.startswith("|  |")]
    told = [name.strip() for head in heads for name in head.split("|")[2:-1]]
    assert sorted(told[: len(record.names())]) == sorted(record.names()), "each once, before the differences"
    assert [name.split()[0] for name in told].count("AP50") == 12
    tables = [table for table in markdown(record).split("\n\n") if table.startswith("|  |")]
    (of_ap,) = (table for table in tables if "AP50" in table)
    assert "pointing" not in of_ap and "| ours | 25.0 |" in of_ap and "| theirs |" not in of_ap


def test_a_record_is_read_back(record: Record) -> None:
    again = Record.from_dict(json.loads(json.dumps(record.to_dict())))
    assert markdown(again) == markdown(record)
