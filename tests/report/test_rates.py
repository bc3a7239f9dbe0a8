"""Charts of shares: what they were given is where it belongs."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from cfmvit.report import precision_recall, reliability

SVG = "{http://www.w3.org/2000/svg}"


def paths(svg: str) -> list[list[tuple[float, float]]]:
    nodes = ElementTree.fromstring(svg).iter(f"{SVG}path")
    numbers = [[float(value) for value in re.findall(r"[\d.]+", node.attrib["d"])] for node in nodes]
    return [list(zip(values[::2], values[1::2])) for values in numbers]


def test_precision_falls_down_the_page_and_recall_goes_right() -> None:
    svg = precision_recall(
        {"base <b>": [1.0, 0.5, 0.0], "novel": [0.5] * 3, "none": [math.nan] * 3}, title="at 0.5"
    )
    second, first = paths(svg)  # the first lies on top
    assert [x for x, _ in first] == sorted(x for x, _ in first) == [x for x, _ in second]
    assert first[0][1] < first[1][1] == second[1][1] < first[2][1]
    shown = {node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    assert {"at 0.5", "base <b>", "novel", "recall", "precision"} <= shown
    assert "none" not in shown
    with pytest.raises(ValueError, match="precision_recall: groups must hold a finite value"):
        precision_recall({"none": [math.nan, math.nan]})


def test_perfect_scores_lie_on_the_diagonal() -> None:
    svg = reliability({"all": [(0.1, 0.1, 5), (0.9, 0.9, 500), (0.0, 0.0, 0)]})
    (diagonal, line) = paths(svg)
    slope = (diagonal[1][1] - diagonal[0][1]) / (diagonal[1][0] - diagonal[0][0])
    assert (line[1][1] - line[0][1]) / (line[1][0] - line[0][0]) == pytest.approx(slope, rel=1e-3)
    few, many = (float(node.attrib["r"]) for node in ElementTree.fromstring(svg).iter(f"{SVG}circle"))
    assert 0 < few < many
    assert "500 detections of score 0.900, 90.0% right" in svg
    with pytest.raises(ValueError, match="reliability: groups must hold a detection"):
        reliability({"all": [(0.0, 0.0, 0)]})
