"""The report is one valid file that needs nothing else and shows text as text."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cfmvit.report import Card, Report, bars

ATTACK = '<script>alert("x")</script> & "quotes"'
VOID = {"meta", "img", "br"}


class _Reader(HTMLParser):
    """Checks that tags are balanced; keeps text, links and the addresses of what is loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def full_report() -> Report:
    picture = Image.new("RGB", (40, 30), (200, 30, 60))
    return (
        Report(ATTACK, ATTACK, [ATTACK])
        .cards([Card("22.7", ATTACK, ATTACK, novel=True), Card("3", "plain")])
        .section("First " + ATTACK, "one `code <b>`\n\ntwo **bold**")
        .legend()
        .grid([(picture, ATTACK), (picture, "")])
        .figure(picture, "wide")
        .section("Second")
        .svg(bars({ATTACK: {"a": 0.5}}), caption=ATTACK)
        .svg(bars({"x": {"a": 0.5}}), bars({"y": {"a": 0.5}}))
        .table(
            {"with": {"AP": 0.25, "APr": math.nan, "note": ATTACK}, "without": {"AP": 0.1}}, highlight=["APr"]
        )
        .facts({"device": ATTACK, "seconds": 3})
        .details(ATTACK, ATTACK)
    )


def test_everything_is_escaped_and_balanced() -> None:
    page = full_report().render()
    reader = _Reader(page)
    assert page.count("<script>") == 1
    assert "alert" not in page.split("<script>")[1]
    assert "".join(reader.text).count('alert("x")') >= 12
    assert "<code>code &lt;b&gt;</code>" in page
    assert "<b>bold</b>" in page


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = full_report().render()
    for _, attributes in _Reader(page).tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), attributes[name]
    assert "url(" not in page
    assert "@import" not in page
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}


def test_pictures_are_inside() -> None:
    images = [attributes for tag, attributes in _Reader(full_report().render()).tags if tag == "img"]
    assert len(images) == 4  # three, and the enlarged view
    data = base64.b64decode(images[0]["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (40, 30)
        assert max(abs(a - b) for a, b in zip(picture.getpixel((20, 15)), (200, 30, 60), strict=True)) < 8


def test_the_head_links_to_each_section() -> None:
    tags = _Reader(full_report().render()).tags
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert (
        links
        == [f"#{attributes['id']}" for tag, attributes in tags if tag == "section"]
        == ["#section-1", "#section-2"]
    )


def test_table_marks_the_best_and_writes_dashes() -> None:
    page = full_report().render()
    assert '<td class="best">25.0</td><td>10.0</td>' in page
    assert '<tr class="novel"><th scope="row">APr</th><td>–</td><td>–</td></tr>' in page


def test_pictures_of_several_shapes_stand_in_rows() -> None:
    tall, wide = Image.new("RGB", (10, 30)), Image.new("RGB", (30, 10))
    assert 'class="grid mixed"' in Report("t").grid([(tall, ""), (wide, "")]).render()
    assert 'class="grid mixed"' not in Report("t").grid([(tall, ""), (tall, "")]).render()


def test_write_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Report("Old").write(tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    monkeypatch.setattr("os.replace", _fail)
    with pytest.raises(OSError, match="disk full"):
        Report("New").write(path)
    assert "<title>Old</title>" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def _fail(*paths: object) -> None:
    raise OSError("disk full")
