"""Scenes of photographs: what is novel is told by captions alone, boxes lie where their object was pasted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfmvit.data import open_captions, open_detection
from cfmvit.data.photographs import PhotographsConfig, make_photographs
from cfmvit.data.scenes import SplitConfig

BOX = [2, 3, 20, 12]  # of photographs of 24 x 16 pixels
LABELS = [{"category_id": 1, "box_xyxy": BOX}, {"category_id": 2, "box_xyxy": BOX}]


@pytest.fixture
def config(shards: Callable[..., Path]) -> PhotographsConfig:
    folder = shards(LABELS, ("train-000", "train-001", "val-000"))
    split = SplitConfig(images=8, size=96, objects=(1, 2), scale=(16, 48))
    return PhotographsConfig(f"shards:{folder}", size=24, pretrain=4, train=split, val=split)


def test_novel_categories_have_captions_alone(config: PhotographsConfig, tmp_path: Path) -> None:
    spec = f"lvis:{make_photographs(tmp_path / 'data', config)}"
    captions = open_captions(spec, image_size=24, augment=False)
    assert sorted(captions.texts()) == ["a photo of a cat"] * 2 + ["a photo of a owl"] * 2
    assert captions.load(0, np.random.default_rng(0))["image"].shape == (3, 24, 24)
    seen = {
        split: open_detection(spec, split=split, base_only=False, image_size=96) for split in ("train", "val")
    }
    found = {s: {a["category_id"] for e in d.entries for a in e.annotations} for s, d in seen.items()}
    assert found == {"train": {1}, "val": {1, 2}}
    assert [category.novel for category in seen["val"].categories] == [False, True]
    oracle = make_photographs(tmp_path / "oracle", replace(config, novel_boxes=True))
    boxes = open_detection(f"lvis:{oracle}", split="train", base_only=False, image_size=96)
    assert {a["category_id"] for entry in boxes.entries for a in entry.annotations} == {1, 2}


def test_boxes_are_those_of_the_object(config: PhotographsConfig, tmp_path: Path) -> None:
    data = open_detection(
        f"lvis:{make_photographs(tmp_path / 'data', config)}", split="val", base_only=False, image_size=96
    )
    count = 0
    for entry in data.entries:
        boxes = np.array([a["bbox"] for a in entry.annotations])
        # An object of 18 x 9 pixels, of photographs whose longer side of 24 pixels became 16 to 48.
        assert np.allclose(boxes[:, 2] / boxes[:, 3], 2, rtol=0.1)
        assert (boxes[:, 2] >= 18 / 24 * 16 - 1).all()
        assert (boxes[:, 2] <= 18 / 24 * 48 + 1).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= 96).all()
        for i, (x, y, w, h) in enumerate(boxes):
            for a, b, c, d in boxes[:i]:
                assert x + w <= a or a + c <= x or y + h <= b or b + d <= y
        count += len(boxes)
    assert count >= 8


def test_the_same_bytes_again(config: PhotographsConfig, tmp_path: Path) -> None:
    first, second = (make_photographs(tmp_path / name, config) for name in ("first", "second"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 4 + 8 + 8 + 5
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)
    made = (first / "manifest.json").stat().st_mtime_ns
    make_photographs(first, config)
    assert (first / "manifest.json").stat().st_mtime_ns == made, "what is there is kept"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "photos"}, "source must look like shards:DIR, got 'photos'"),
        ({"pretrain": 9}, "pretrain must be at most the 4 of shards:.*, got 9"),
        ({"size": 4}, "size must be at least 16, got 4"),
        (
            {"val": SplitConfig(images=1, size=64, scale=(16, 80))},
            r"val\.scale must rise .* at most its size 64",
        ),
    ],
)
def test_what_is_refused(config: PhotographsConfig, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"photographs: {message}"):
        make_photographs(tmp_path / "data", replace(config, **changes))
    assert not (tmp_path / "data").exists()
