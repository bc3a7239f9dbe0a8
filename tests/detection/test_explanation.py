"""What scores are made of, and maps of where a picture resembles a label."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cfmvit.cli import main
from cfmvit.detection import Detector, similarity_maps
from cfmvit.detection.explanation import MOST_MAPS
from cfmvit.evaluation import value_tokens
from cfmvit.report import similarity_map

from .small_detector import LABELS, SIZE, small_config, squares_batch

Make = Callable[..., Detector]
PARTS = {"detector", "frozen", "centerness"}


def test_parts_make_the_score(make_detector: Make) -> None:
    scores = replace(small_config().scores, renormalize=False, center_power=2.0)
    detector = make_detector(base_labels=LABELS[:1], scores=scores)
    images = list(squares_batch()["images"])
    for plain, found in zip(
        detector.predict(images, LABELS, precision="fp32"),
        detector.predict(images, LABELS, precision="fp32", explain=True),
    ):
        assert plain.parts is None and torch.equal(plain.scores, found.scores) and len(found) > 3
        parts = found.parts
        w = torch.where(found.label_ids == 0, scores.base_weight, scores.novel_weight)
        made = parts.detector ** (1 - w) * parts.frozen**w * parts.centerness**2
        torch.testing.assert_close(made, found.scores, rtol=1e-4, atol=1e-7)
        some = found[[2, 0]]
        assert some.parts.frozen.tolist() == parts.frozen[[2, 0]].tolist()
        assert some.to_list()[0]["frozen"] == pytest.approx(parts.frozen[2].item())
        assert found.to_coco(1, [1, 2, 3])[0].keys() >= PARTS


def test_a_detector_alone_has_no_frozen_part(make_detector: Make) -> None:
    detector = make_detector(scores=replace(small_config().scores, vlm=False))
    (item, *_) = detector.predict(squares_batch()["images"][0], LABELS, explain=True).to_list()
    assert item["frozen"] is None and 0 < item["detector"] <= 1


def test_a_map_covers_the_picture_without_its_padding(make_detector: Make) -> None:
    detector, image = make_detector(), squares_batch()["images"][0][:, :60]
    maps = similarity_maps(detector, image, LABELS)
    assert tuple(maps) == LABELS
    rows, columns = 8, SIZE // 8  # 60 pixels, and four of padding
    pixels = torch.nn.functional.pad(image, (0, 0, 0, 4))
    with torch.no_grad():
        tokens = value_tokens(detector.model, pixels[None])[0]
    text = detector.vocabulary(LABELS).embeddings[2]
    wanted = similarity_map(pixels, tokens, text, (rows, columns))
    assert np.array_equal(np.asarray(maps[LABELS[1]]), np.asarray(wanted))


def test_the_command(make_detector: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_detector().save_pretrained(tmp_path / "detector")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, image in enumerate(squares_batch()["images"]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(photos / f"{number}.png")
    options = ["--labels", "red square, a/b", "--checkpoint", str(tmp_path / "detector"), "--explain"]
    options += ["--threshold", "0"]
    one = ["detect", str(photos / "0.png"), *options, "--output", str(tmp_path / "out.png")]
    assert main([*one, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0].keys() >= PARTS
    assert main(one) == 0
    line, *_, last = capsys.readouterr().out.splitlines()
    assert all(f"{part} 0." in line for part in PARTS)
    assert last == f"map: {tmp_path}/out.2-a-b.detected.png"
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "out.png",
        "out.1-red-square.detected.png",
        "out.2-a-b.detected.png",
    }
    assert main(["detect", str(photos), *options, "--output", str(tmp_path / "found")]) == 0
    assert json.loads((tmp_path / "found" / "results.json").read_text())[0].keys() >= PARTS
    assert (tmp_path / "found" / "1.png.2-a-b.detected.png").is_file()


def test_too_many_maps_are_refused(
    make_detector: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_detector().save_pretrained(tmp_path / "detector")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    labels = ",".join(f"label {number}" for number in range(MOST_MAPS + 1))
    command = ["detect", str(tmp_path / "a.png"), "--labels", labels, "--explain"]
    command += ["--checkpoint", str(tmp_path / "detector"), "--output", str(tmp_path / "out.png")]
    assert main(command) == 2
    assert "must be at most 32, got 33" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
