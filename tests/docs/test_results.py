"""The tables of docs/results.md are those of the figures that are committed."""

from __future__ import annotations

import json
import re

import pytest

from cfmvit.study.record import Record
from cfmvit.study.tables import markdown

from ..processes import ROOT

PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- study (\w+) -->\n(.*?)<!-- /study \1 -->", PAGE, re.DOTALL)


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_the_table_is_that_of_the_record(name: str, block: str) -> None:
    path = ROOT / "bench" / "results" / f"study-{name}.json"
    if not path.is_file():
        pytest.skip("the source distribution has no bench/results")
    content = json.loads(path.read_text(encoding="utf-8"))
    table = markdown(Record.from_dict(content))
    assert block.strip() == table[table.index("Means over") :].strip()
    assert not Record.from_dict(content).errors()


def test_there_is_one() -> None:
    assert BLOCKS
