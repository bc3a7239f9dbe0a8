"""Evaluation beside hotcoco's own: the same figures, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("hotcoco")

from cfmvit.bench import evaluation
from cfmvit.bench.evaluation_data import SIZES


@pytest.mark.parametrize("kind", evaluation.KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_both_ways_have_the_same_figures(tmp_path: Path, name: str, kind: str) -> None:
    found = evaluation.measure(tmp_path, name, SIZES[name].of(20), kind, 1)
    assert 0 < found["cfmvit"]["figures"]["AP"] < 1
    assert len(found["hotcoco"]["figures"]) >= 7
    assert evaluation.difference(found) <= evaluation.DIFFERENCE_BAR
    assert found["cfmvit"]["bytes"] < 3e8  # torch alone takes more
