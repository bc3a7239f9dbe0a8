"""Tables of ``filepath, title``, as open_clip reads them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cfmvit.data import open_captions

from .conftest import jpeg

ROWS = [("a.jpg", 'a "quoted", cup'), ("b/c.jpg", "two\tcats"), ("a.jpg", "the cup again"), ("b/c.jpg", "")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "b").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b/c.jpg"), start=1):
        (tmp_path / "images" / name).write_bytes(jpeg(number))
    return tmp_path


def table(
    path: Path, rows: list[tuple[str, str]] = ROWS, columns: tuple[str, ...] = ("filepath", "title")
) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([columns, *rows])
    return path


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv"])
def test_open_clip_reads_the_same(folder: Path, name: str) -> None:
    rows = [(f"images/{path}", title) for path, title in ROWS]
    path = table(folder / name, rows)
    data = open_captions(str(path), image_size=16)
    assert data.texts() == ['a "quoted", cup', "the cup again", "two\tcats"]
    assert "2 of 2 images; 3 captions, 1 empty ones" in data.summary
    assert data.load(1, np.random.default_rng(0))["key"] == str(folder / "images" / "b" / "c.jpg")
    theirs = pytest.importorskip("open_clip_train.data").CsvDataset(
        str(path),
        lambda image: image,
        "filepath",
        "title",
        "\t" if name.endswith("tsv") else ",",
        lambda texts: texts,
    )
    assert [Path(image).name for image in theirs.images] == ["a.jpg", "c.jpg", "a.jpg", "c.jpg"]
    assert {title for title in theirs.captions if isinstance(title, str)} == set(data.texts())


def test_the_images_may_lie_elsewhere(folder: Path) -> None:
    path = table(folder / "pairs.csv", [*ROWS, (str(folder / "images" / "a.jpg"), "by its whole path")])
    data = open_captions(f"{path}@{folder / 'images'}", image_size=16)
    assert data.texts()[-1] == "by its whole path" and len(data) == 3


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            ROWS,
            ("file", "title"),
            "pairs.csv can't be read: its columns must be filepath and title, got file, title",
        ),
        ([("../secret.jpg", "x")], ("filepath", "title"), "the filepath of image 1 must stay below .*images"),
        ([("", "x")], ("filepath", "title"), "line 2 has no filepath"),
        (
            [("gone.jpg", "x"), *ROWS],
            ("filepath", "title"),
            "pairs.csv refers to 1 of 3 images that are missing",
        ),
        ([("a.jpg", " ")], ("filepath", "title"), "must have an image with a caption, got none"),
        ([("a.jpg", "x" * 200_000)], ("filepath", "title"), "can't be read: line 1: field larger than"),
    ],
)
def test_bad_tables(
    folder: Path, rows: list[tuple[str, str]], columns: tuple[str, ...], message: str
) -> None:
    path = table(folder / "pairs.csv", rows, columns)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_captions(f"{path}@{folder / 'images'}", image_size=16)


def test_an_empty_table(folder: Path) -> None:
    (folder / "pairs.tsv").write_text("")
    with pytest.raises(ValueError, match="its columns must be filepath and title, got none"):
        open_captions(f"{folder / 'pairs.tsv'}", image_size=16)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "a.csv",
            ["images/a.jpg,a dog, on a mat"],
            "line 2 must have 2 fields, as the first has, and has more",
        ),
        ("a.tsv", ['images/a.jpg\t"Big sign', "images/b/c.jpg\tcats"], "unexpected end of data"),
        ("a.tsv", ['images/a.jpg\t"Big" sign', "images/b/c.jpg\tcats"], "expected after"),
    ],
)
def test_no_line_is_cut_or_swallowed(folder: Path, name: str, lines: list[str], message: str) -> None:
    separator = "\t" if name.endswith("tsv") else ","
    (folder / name).write_text("\n".join([f"filepath{separator}title", *lines, ""]))
    with pytest.raises(ValueError, match=message):
        open_captions(str(folder / name), image_size=16)
