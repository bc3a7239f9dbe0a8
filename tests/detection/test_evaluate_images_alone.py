"""``cfmvit evaluate`` on a list of images without boxes: detections alone, or figures by a ground truth from elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cfmvit.cli import main


@pytest.fixture
def command(tmp_path: Path, make_detector) -> list[str]:
    make_detector().save_pretrained(tmp_path / "detector")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "a.png")
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "red circle"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "images.json").write_text(json.dumps({**truth, "annotations": []}))
    given = {"--checkpoint": tmp_path / "detector", "--data": f"{tmp_path}/images.json@{tmp_path}"}
    words = [str(word) for pair in given.items() for word in pair]
    return ["evaluate", *words, "--device", "cpu", "--output", str(tmp_path / "out")]


def test_detections_alone(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    assert "there is no ground truth to compare with" in capsys.readouterr().out
    assert (tmp_path / "out" / "results.json").is_file()


def test_another_ground_truth(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--annotations", str(tmp_path / "truth.json")]) == 0
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 <= figures["bbox"]["AP50"] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, r"--annotations must have the images of --data, got .*truth\.json without 1"),
        (
            {"categories": [{"id": 1, "name": "blue ring"}]},
            "the categories of --data: 1 is 'red circle' there, and 'blue ring' in",
        ),
        ({"categories": []}, "1 is 'red circle' there, and None in"),
        (
            {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40]}]},
            "has no area",
        ),
    ],
)
def test_another_ground_truth_is_checked_before_the_prediction(
    command: list[str],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth = json.loads((tmp_path / "truth.json").read_text())
    if "annotations" not in change:
        truth["annotations"] = []
    (tmp_path / "truth.json").write_text(json.dumps({**truth, **change}))
    assert main([*command, "--annotations", str(tmp_path / "truth.json")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out" / "results.json").exists()
