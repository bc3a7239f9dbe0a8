"""``cfmvit detect``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cfmvit.detection.command import detect

from .small_detector import LABELS, squares_batch


@pytest.fixture
def image(tmp_path) -> Path:
    """Return the path of a picture of squares."""
    from PIL import Image

    path = tmp_path / "squares.png"
    Image.fromarray(squares_batch()["images"][0].permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.fixture
def checkpoint(tmp_path, make_detector) -> Path:
    """Return the folder of a detector with fresh weights."""
    make_detector(base_labels=LABELS[:1]).save_pretrained(tmp_path / "detector")
    return tmp_path / "detector"


def test_it_prints_and_draws(image, checkpoint, tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    path = detect(image, "Red square, cat", checkpoint, threshold=0.0)
    assert path == Path("squares.detected.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 1} found; overlay: squares.detected.png"
    assert len(lines) > 1
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width >= 96
    detect(image, "cat", checkpoint, tmp_path / "out.jpg", threshold=1.0)
    with Image.open(tmp_path / "out.jpg") as drawn:
        assert drawn.format == "JPEG"


def test_it_prints_json(image, checkpoint, tmp_path, capsys):
    detect(image, "red square,cat", checkpoint, tmp_path / "out.png", 0.0, as_json=True)
    items = json.loads(capsys.readouterr().out)
    assert {item["label"] for item in items} <= {"red square", "cat"}
    assert items[0].keys() == {"score", "label", "box"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [("", "must not be empty"), ("cat,,dog", "must not be empty"), ("cat, Cat", "cat more than once")],
)
def test_bad_labels_leave_nothing_behind(image, checkpoint, tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        detect(image, labels, checkpoint, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_missing_image_is_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at .*none\.jpg"):
        detect(tmp_path / "none.jpg", "cat", checkpoint)
