"""Evaluation beside hotcoco's own: the same figures, without torch; the page says what was measured, and that holds the bars."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("hotcoco")

from cfmvit.bench import evaluation
from cfmvit.bench.evaluation_data import SIZES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", evaluation.KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_both_ways_have_the_same_figures(tmp_path: Path, name: str, kind: str) -> None:
    found = evaluation.measure(tmp_path, name, SIZES[name].of(20), kind, 1)
    assert 0 < found["cfmvit"]["figures"]["AP"] < 1
    assert len(found["hotcoco"]["figures"]) >= 7
    assert evaluation.difference(found) <= evaluation.DIFFERENCE_BAR
    assert found["cfmvit"]["bytes"] < 3e8  # torch alone takes more


def test_the_page_has_the_record() -> None:
    record = json.loads((ROOT / "bench" / "results" / "evaluation-cpu.json").read_text())
    whole = (ROOT / "docs" / "system.md").read_text()
    shown = whole.partition(f"<!-- {evaluation.MARK} -->\n")[2].partition(f"<!-- /{evaluation.MARK} -->")[0]
    assert shown == evaluation.page(record)
    assert {(found["set"], found["kind"]) for found in record["results"]} == {
        (name, kind) for name in SIZES for kind in evaluation.KINDS
    }
    for found in record["results"]:
        assert evaluation.ratio(found, "core_seconds") <= evaluation.TIME_BAR
        assert evaluation.ratio(found, "seconds") <= evaluation.TIME_BAR
        assert evaluation.ratio(found, "bytes") <= evaluation.MEMORY_BAR
        assert evaluation.difference(found) <= evaluation.DIFFERENCE_BAR
