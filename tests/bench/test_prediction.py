"""The benchmark of predictions, in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchvision")
from cfmvit.bench import prediction


def test_what_is_measured_is_put_into_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, output = tmp_path / "page.md", tmp_path / "found.json"
    page.write_text("before\n<!-- prediction -->\n<!-- /prediction -->\nafter\n")
    words = [
        "--size",
        "tiny",
        "--rounds",
        "1",
        "--pictures",
        "3",
        "--output",
        str(output),
        "--into",
        str(page),
    ]
    prediction.main(words)
    record = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == record
    for run in record["predict"]:
        assert list(run["pieces"])[:2] == ["finetuned tower", "frozen tower"]
        assert set(run["pieces"]) >= {"pyramid", "proposals", "box head", "mask head"}
        assert 0 < sum(run["pieces"].values()) <= run["seconds"]
        assert run["found"] == 100
    assert record["folder"]["seconds"]["folder"] > 0
    text = page.read_text()
    assert "| all but the towers |" in text
    assert "3 pictures of 640 x 480" in text
    assert text.startswith("before\n") and text.endswith("after\n")


def test_operations_of_towers() -> None:
    """ViT-B/16 at 1024 px: 0.70 TFLOP of products a tower; 0.23 and 0.09 of attention, within windows and global."""
    with torch.device("meta"):
        detector = prediction.Detector(prediction.create_model("cfm_vit_b16"), prediction.DetectorConfig())
    assert prediction._flops(detector) == pytest.approx(2 * 0.696e12 + 0.232e12 + 0.087e12, rel=0.01)
