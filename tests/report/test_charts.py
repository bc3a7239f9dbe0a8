"""Curves and bars: valid SVG that shows the numbers that it was given."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from cfmvit.report import against_cost, bars, curves
from cfmvit.report.against_cost import Point
from cfmvit.report.svg import log_ticks, nice_ticks, number

SVG = "{http://www.w3.org/2000/svg}"


def log_file(path: Path, losses: list[float], **more: float) -> Path:
    lines = [json.dumps({"step": 10 * step, "loss": loss, **more}) for step, loss in enumerate(losses)]
    path.write_text("\n".join(lines) + "\n")
    return path


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def paths(svg: str) -> list[list[tuple[float, float]]]:
    found = []
    for node in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        numbers = [float(value) for value in re.findall(r"[\d.]+", node.attrib["d"])]
        found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def test_runs_are_overlaid_and_named(tmp_path: Path) -> None:
    runs = {
        "a <b>": log_file(tmp_path / "a.jsonl", [3, 2, 1]),
        "none": log_file(tmp_path / "b.jsonl", [3, 3, 2.5]),
    }
    svg = curves(runs, title="Loss & more", smoothing=0)
    assert {"a <b>", "none", "Loss & more", "2.5", "step"} <= set(texts(svg))
    first, second = paths(svg)
    assert first[0][0] < first[1][0] < first[2][0]
    assert first[0][1] < first[1][1] < first[2][1]  # a falling loss goes down the page
    assert first[0] == second[0]
    assert first[2][1] > second[2][1]


def test_smoothing_begins_at_the_first_value_and_keeps_a_constant(tmp_path: Path) -> None:
    raw, smooth = paths(curves(log_file(tmp_path / "m.jsonl", [2.0] * 5 + [4.0]), smoothing=0.9))
    assert smooth[:5] == raw[:5]
    assert smooth[5][1] > raw[5][1]


def test_log_axis_makes_ratios_equal(tmp_path: Path) -> None:
    (line,) = paths(curves(log_file(tmp_path / "m.jsonl", [100, 10, 1, 0, -1]), smoothing=0, log=True))
    assert len(line) == 3
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)


def test_what_cannot_be_drawn_is_passed_over(tmp_path: Path) -> None:
    path = log_file(tmp_path / "m.jsonl", [3, math.nan, 2, math.inf, 1])
    with path.open("a") as file:
        file.write('{"step": 50, "lo')  # a killed run's last line
    (line,) = paths(curves(path, smoothing=0))
    assert len(line) == 3
    assert paths(curves(log_file(tmp_path / "one.jsonl", [1.0]), smoothing=0)) == []  # one point is a dot
    with pytest.raises(
        ValueError, match=r"curves: runs must hold finite values of acc, got none in .*m.jsonl"
    ):
        curves(path, ("acc",))
    with pytest.raises(ValueError, match=r"curves: smoothing must be in \[0, 1\), got 1"):
        curves(path, smoothing=1)


def test_long_runs_stay_small(tmp_path: Path) -> None:
    losses = [1 / (1 + step) for step in range(5000)]
    (line,) = paths(curves(log_file(tmp_path / "m.jsonl", losses), smoothing=0))
    assert len(line) <= 500


def test_bars() -> None:
    svg = bars({"novel": {"ours": 0.2, "without": 0.05}, "base": {"ours": math.nan}}, chance={"novel": 0.01})
    root = ElementTree.fromstring(svg)
    widths = [
        float(node.attrib["width"])
        for node in root.iter(f"{SVG}rect")
        if node.find(f"{SVG}title") is not None
    ]
    assert widths[0] / widths[1] == pytest.approx(4, rel=1e-3)
    assert {"novel", "base", "20.0", "5.0", "–", "chance 1"} <= set(texts(svg))
    with pytest.raises(ValueError, match="bars: groups must hold a finite value"):
        bars({"a": {"b": math.nan}})


def test_names_of_any_length_are_whole_and_apart() -> None:
    """Letters of these sizes are narrower than 7.6 and 7 on average."""
    name = "a name that is longer than most of them"
    left, _, width, _ = map(float, ElementTree.fromstring(bars({name: {"x": 0.5}})).attrib["viewBox"].split())
    assert left <= 136 - 7.6 * len(name)
    assert left + width == 760, "what is right of the names stays where it was"
    assert ElementTree.fromstring(bars({"short": {"x": 0.5}})).attrib["viewBox"].startswith("0 0 760 ")
    points = {
        name: Point(1, 0.5),
        "b" + name: Point(1.01, 0.5),
        "c": Point(8, 0.5),
        "d" + name: Point(10, 0.5),
    }
    root = ElementTree.fromstring(against_cost(points, title="", cost="ms"))
    places = {
        node.text: (float(node.attrib["x"]), float(node.attrib["y"]))
        for node in root.iter(f"{SVG}text")
        if node.text in points
    }
    assert abs(places[name][1] - places["b" + name][1]) >= 13, "two names at one place"
    assert abs(places["c"][1] - places[name][1]) < 13, "names that are apart stay at their points"
    assert float(root.attrib["viewBox"].split()[2]) >= places["d" + name][0] + 7 * len("d" + name)


def test_ticks_of_a_short_axis_are_written_as_they_are() -> None:
    drawn = texts(against_cost({"a": Point(1, 0.106), "b": Point(2, 0.1157)}, title="", cost="ms"))
    assert {"10.75", "11", "11.25", "11.5"} <= set(drawn)


def test_ticks() -> None:
    assert nice_ticks(0, 2) == [0, 0.5, 1, 1.5, 2]
    assert nice_ticks(3, 3) == [3]
    assert nice_ticks(-0.31, 0.29) == [-0.2, 0, 0.2]
    assert log_ticks(0.9, 120) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(2.1, 2.9) == [2.2, 2.4, 2.6, 2.8]
    assert [number(value) for value in (0.01234, 640, 1500, 12000, 3.1e6)] == [
        "0.0123",
        "640",
        "1500",
        "12k",
        "3.1M",
    ]


ATTACK = '</title><script>alert("x")</script>&\'\x00\x1b'


@pytest.mark.parametrize("where", ["group", "series", "title", "run", "metric"])
def test_no_text_becomes_markup(where: str, tmp_path: Path) -> None:
    name = lambda part: ATTACK if part == where else part
    if where in ("run", "metric"):
        path = tmp_path / "metrics.jsonl"
        path.write_text(json.dumps({"step": 1, name("metric"): 2.0, "other": 3.0}) + "\n")
        drawn = curves({name("run"): path, "b": path}, [name("metric"), "other"])
    else:
        drawn = bars(
            {name("group"): {name("series"): 0.5, "b": 0.1}}, title=name("title"), chance={"group": 0.1}
        )
    root = ElementTree.fromstring(str(drawn))  # well-formed, whatever a name holds
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    shown = [element.text or "" for element in root.iter()] + [root.get("aria-label") or ""]
    assert any("<script>alert" in text for text in shown)
