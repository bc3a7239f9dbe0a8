"""``cfmvit detect``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.detection import Detections, Detector
from cfmvit.detection.command import detect, read_labels

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


@pytest.mark.parametrize("threshold", [float("nan"), -0.1, 1.5])
def test_a_threshold_is_a_score(image, checkpoint, tmp_path, threshold):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\]"):
        detect(image, "cat", checkpoint, tmp_path / "out.png", threshold=threshold)
    assert not (tmp_path / "out.png").exists()


def test_a_missing_image_is_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at .*none\.jpg"):
        detect(tmp_path / "none.jpg", "cat", checkpoint)


def test_salient_keeps_the_best_label_of_each_place_that_stands_out():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    found = Detections(boxes, torch.tensor([0.4, 0.3, 0.11, 0.09]), torch.arange(4), ["a", "b", "c", "d"])
    assert found.salient().labels == ["a", "c"]
    assert found.salient(fraction=0.2).labels == ["a", "c", "d"]
    assert found.salient(floor=0.2).labels == ["a"]
    assert len(found[:0].salient()) == 0


def test_the_shipped_detector_names_what_it_was_never_shown_a_box_of(tmp_path, capsys):
    config = ScenesConfig(
        colours=8,
        textures=5,
        shapes=3,
        pretrain=SplitConfig(images=0, size=64),
        train=SplitConfig(images=0, size=128),
        val=SplitConfig(images=40, size=128, objects=(1, 1), scale=(40, 52)),
        seed=0,
    )
    root = make_scenes(tmp_path / "scenes", config)
    truth = json.loads((root / "annotations" / "lvis_v1_val.json").read_text())
    names = {c["id"]: c["name"] for c in truth["categories"]}
    base = set(Detector.from_pretrained().config.base_labels)
    novel = [a for a in truth["annotations"] if names[a["category_id"]] not in base]
    others = sorted(set(names.values()) - base)[::5]
    hits = 0
    for a in novel:
        name = names[a["category_id"]]
        labels = list(dict.fromkeys([name, *others]))
        detect(
            root / "val" / f"{a['image_id']:08d}.jpg",
            ",".join(labels),
            output=tmp_path / "x.png",
            as_json=True,
        )
        found = json.loads(capsys.readouterr().out)
        hits += bool(found) and found[0]["label"] == name
    assert len(novel) > 5
    assert hits > 0.4 * len(novel), f"{hits} of {len(novel)}; chance is about one in {len(others)}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat, dog", ["cat", " dog"]),
        ("cat,dog,", ["cat", "dog"]),
        ("dog . cat .", ["dog", " cat"]),
        ("st. bernard", ["st. bernard"]),
        ("mr. bean, cat", ["mr. bean", " cat"]),
    ],
)
def test_labels_are_parted(text, expected):
    assert read_labels(text) == expected


def test_labels_from_a_file(image, checkpoint, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\ufeffcup, red\ncat\n\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ["cup, red", "cat"]
    detect(image, tmp_path / "labels.txt", checkpoint, tmp_path / "out.png", threshold=0.0)
    assert "cup, red" in capsys.readouterr().out
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bad\.txt must be a text in UTF-8"):
        read_labels(tmp_path / "bad.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt must have a label at least"):
        read_labels(tmp_path / "empty.txt")


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif"])
def test_an_output_is_what_its_name_says(image, checkpoint, tmp_path, suffix):
    from PIL import Image

    detect(image, "cat", checkpoint, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as drawn:
        assert drawn.format == {".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}[suffix]


def test_an_output_is_neither_the_image_nor_of_no_kind(image, checkpoint, tmp_path):
    before = image.read_bytes()
    with pytest.raises(ValueError, match="output must be another file than the image"):
        detect(image, "cat", checkpoint, image)
    with pytest.raises(ValueError, match=r"output must end in \.png, \.jpg, .* got .*out\.pdf"):
        detect(image, "cat", checkpoint, tmp_path / "out.pdf")
    assert image.read_bytes() == before


def test_what_a_threshold_hides_is_said(image, checkpoint, tmp_path, capsys):
    detect(image, "cat", checkpoint, tmp_path / "out.png", threshold=1.0)
    assert re.search(
        r"0 found \(\d+ of lower scores are not shown, the best of 0\.\d{3}\)", capsys.readouterr().out
    )


def test_a_runs_folder_stands_for_its_detector(image, checkpoint, tmp_path):
    detect(image, "cat", checkpoint.parent, tmp_path / "out.png")
