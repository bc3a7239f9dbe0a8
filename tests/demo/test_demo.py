"""The demo with fewer categories, images and steps than its quick preset: every stage, pretraining that teaches names, and a
report that stands alone. What the quick preset itself comes to is in test_quick_demo.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cfmvit.cli import main
from cfmvit.demo.presets import PRESETS, Preset
from cfmvit.demo.ship import ship
from cfmvit.detection import Detector

pytestmark = pytest.mark.first


def small() -> Preset:
    """The quick preset, of 24 categories, 8 of them novel; too few steps of finetuning to learn boxes."""
    quick = PRESETS["quick"]
    images = {"pretrain": 500, "train": 60, "val": 20}
    splits = {name: replace(getattr(quick.scenes, name), images=count) for name, count in images.items()}
    options = {"width": 96, "heads": 2, "depth": 2, "text_width": 96, "text_heads": 2, "text_depth": 1}
    pretrain = replace(
        quick.pretrain,
        model_options={**options, "decoder_depth": 1},
        vocab_size=300,
        batch_size=32,
        loop=replace(quick.pretrain.loop, steps=100),
    )
    finetune = replace(quick.finetune, batch_size=4, loop=replace(quick.finetune.loop, steps=12))
    scenes = replace(quick.scenes, colours=4, textures=2, shapes=3, **splits)
    return Preset("quick", scenes, pretrain, finetune)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", small())
        assert main(["demo", "--preset", "quick", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_every_stage_leaves_its_figures(summary: dict[str, Any]) -> None:
    assert summary["categories"] == {"all": 24, "novel": 8}
    assert set(summary["metrics"]) == {"pretrained", "from scratch", "shuffled names"}
    every = [
        row[group] for row in summary["metrics"].values() for group in ("AP50", "AP50_base", "AP50_novel")
    ]
    assert all(0 <= value <= 1 for value in every)


def test_frozen_regions_are_named_better_than_by_chance(summary: dict[str, Any]) -> None:
    """A run names about three quarters within five; chance, and about what no training comes to, is 5 of 24."""
    top5 = {name: row["top5"] for name, row in summary["zero_shot_regions"].items()}
    assert top5["pretrained"] > 2 * 5 / 24
    assert top5["pretrained"] > 1.5 * top5["from scratch"]


def test_maps_point_at_what_is_named(summary: dict[str, Any]) -> None:
    pointing = summary["pointing"]
    models, ways = ("pretrained", "from scratch"), ("values", "tokens", "decoder", "values, shuffled names")
    assert set(pointing) == {f"{model}, {way}" for model in models for way in ways}
    shown = pointing["pretrained, values"]
    assert shown["hit"] > 2 * shown["chance"]
    assert shown["hit"] > pointing["pretrained, values, shuffled names"]["hit"]


def test_the_report_stands_alone(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert page.count("data:image/") >= 6 + 12, "overlays, and three rows of an image with three maps"
    assert all(title in page for title in ("Novel categories, found", "Where the words are", "Training"))


def test_the_detector_ships_small_and_detects_the_same(folder: Path, tmp_path: Path) -> None:
    ship(folder, tmp_path / "small")
    assert sum(file.stat().st_size for file in (tmp_path / "small").iterdir()) < 10e6
    image = next((folder / "data" / "val").glob("*.jpg"))
    labels = ["red plain circle", "blue white-striped ring", "green plain cross"]
    whole, small = (
        Detector.from_pretrained(path).predict(image, labels, max_detections=5)
        for path in (folder / "finetune-pretrained" / "detector", tmp_path / "small")
    )
    scores = lambda found: [item["score"] for item in found.to_list()]
    assert scores(small) == pytest.approx(scores(whole), abs=0.02)


def test_detect_draws_on_an_image(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((folder / "data" / "val").glob("*.jpg"))
    command = ["detect", str(image), "--checkpoint", str(folder / "finetune-pretrained" / "detector")]
    command += ["--labels", "red plain circle, green plain cross", "--threshold", "0", "--json"]
    assert main([*command, "--output", str(tmp_path / "drawn.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {item["label"] for item in found} <= {"red plain circle", "green plain cross"}
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width >= 128
