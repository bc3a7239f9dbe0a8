"""Shards as a detection data set: boxes, damage, ground truth for evaluation."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfmvit.data import open_captions, open_detection
from cfmvit.data.masks import decode_mask
from cfmvit.evaluation.splits import open_vocabulary_split

Write = Callable[..., Path]
BOX = [2, 3, 20, 12]
LABELS = [{"category_id": 1, "box_xyxy": BOX}, {"category_id": 2, "box_xyxy": BOX}]


def opened(folder: Path, split: str = "val") -> Any:
    return open_detection(f"shards:{folder}", split=split, base_only=False, image_size=32)


def test_novel_categories_are_known_to_the_evaluation(shards: Write) -> None:
    data = opened(shards(LABELS, ("val-000",)))
    truth = json.loads(data.annotations_path.read_text())
    split = open_vocabulary_split(truth, data.annotations_path)
    assert split is not None
    assert [category.novel for category in split.categories] == [False, True]
    assert [a["bbox"] for a in truth["annotations"]] == [[2, 3, 18, 9]] * 2


@pytest.mark.parametrize("left", [0.3, 0.7, 0.999])
def test_a_truncated_shard_is_named(shards: Write, left: float) -> None:
    folder = shards(LABELS, ("val-000",))
    shard = folder / "val-000.tar"
    content = shard.read_bytes().rstrip(b"\0")
    shard.write_bytes(content[: int(len(content) * left)])
    with pytest.raises(ValueError, match=r"val-000\.tar is not a whole tar"):
        opened(folder)
    with pytest.raises(ValueError, match=r"val-000\.tar is not a whole tar"):
        open_captions(f"shards:{folder}", split="val", image_size=16)


def test_damaged_samples_are_logged_and_left_out(shards: Write, caplog: pytest.LogCaptureFixture) -> None:
    folder = shards([LABELS[0], LABELS[1], LABELS[0]], ("val-000",))
    shard = folder / "val-000.tar"
    content = bytearray(shard.read_bytes())
    at = content.index(b"\xff\xd8\xff")
    content[at : at + 100] = bytes(100)  # the first image
    label = content.rindex(b'{"category_id"')
    content[label : label + 1] = b"?"  # the last json
    shard.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        truth = json.loads(opened(folder).annotations_path.read_text())
    assert [image["file_name"].rpartition(":")[2] for image in truth["images"]] == ["01"]
    assert len(truth["annotations"]) == 1
    assert len([m for m in caplog.messages if m.startswith("skipped a corrupt sample: ")]) == 2


@pytest.mark.parametrize("category", [[1], "1", None, 9])
def test_an_unknown_category_is_named(shards: Write, category: Any) -> None:
    with pytest.raises(ValueError, match=r"00\.json must have a category_id of .*categories\.json, got"):
        opened(shards([{"category_id": category, "box_xyxy": BOX}], ("val-000",)))


@pytest.mark.parametrize(
    ("kind", "key", "value", "rule"),
    [
        ("annotations", "category_id", [7], "an integer category_id, got [7]"),
        ("annotations", "image_id", [1], "an integer image_id, got [1]"),
        ("images", "width", "abc", "a positive integer width, got 'abc'"),
    ],
)
def test_wrong_kinds_in_json_are_named(
    coco: Callable[..., str], kind: str, key: str, value: Any, rule: str
) -> None:
    spec = coco([{"image_id": 1, "category_id": 7, "bbox": [1, 1, 5, 5]}])
    path = Path(spec.partition("@")[0])
    content = json.loads(path.read_text())
    content[kind][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{kind}[0] must have {rule}")):
        open_detection(spec, split="val", base_only=False, image_size=32)


def test_an_image_with_a_sound_header_only_is_left_out(
    shards: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shards(LABELS, ("val-000",))
    shard = folder / "val-000.tar"
    content = bytearray(shard.read_bytes())
    scan = content.index(b"\xff\xda")  # of the first image: its size stands before
    content[scan : scan + 40] = bytes(40)
    shard.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        truth = json.loads(opened(folder).annotations_path.read_text())
    assert [image["file_name"].rpartition(":")[2] for image in truth["images"]] == ["01"]
    assert "val-000.tar:00" in caplog.text
    assert "skipped 1 of 2 samples, which are corrupt" in caplog.text


SQUARE = [1, 1, 6, 1, 6, 6, 1, 6]


@pytest.mark.parametrize(
    ("segmentation", "rule"),
    [
        ([[1e7, *SQUARE[1:]]], "coordinates of 1e6 or more"),
        ([[float("nan"), *SQUARE[1:]]], "no list of polygons"),
        ([["a", *SQUARE[1:]]], "no list of polygons"),
        (SQUARE, "no list of polygons"),
        ([[[1, 1], [6, 1], [6, 6]]], "no list of polygons"),
        ([SQUARE[:7]], "an odd count of numbers"),
        ([[1, 1, 6, 6]], "fewer than three points"),
        ([SQUARE, [1, 1, 6, 6]], "fewer than three points"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "of another size than their image"),
        ({"size": 3, "counts": [3]}, "damaged"),
        ({"size": [16, 24], "counts": "junk"}, "damaged"),
        ("junk", "neither polygons nor RLE"),
        ([], "no segmentation"),
        (None, "no segmentation"),
    ],
)
def test_a_mask_beyond_all_bounds_is_never_drawn(segmentation: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=re.escape(rule)):
        decode_mask({"id": 3, "bbox": [1, 1, 5, 5], "segmentation": segmentation}, 16, 24)
