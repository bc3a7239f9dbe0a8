"""Image-text pairs from files and shards."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cfmvit.data import CorruptSample, SeededLoader, collate_captions, open_captions
from cfmvit.data.images import decode_rgb, read_rgb

Write = Callable[..., Any]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_scenes_have_captions_of_both_splits(scenes: Path) -> None:
    train = open_captions(f"lvis:{scenes}", image_size=32)
    val = open_captions(f"lvis:{scenes}", split="val", image_size=32, augment=False)
    assert (len(train), len(val)) == (20, 12)
    sample = train.load(0, generator())
    assert sample["image"].shape == (3, 32, 32)
    assert sample["image"].dtype == torch.uint8
    assert sample["text"] in train.texts()
    assert sample["key"] == str(scenes / "pretrain" / "00000001.jpg")


def test_a_sample_depends_on_index_and_generator_alone(scenes: Path) -> None:
    data = open_captions(f"lvis:{scenes}", image_size=32)
    first, again, other = (data.load(3, generator(seed))["image"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_augmentation_nothing_is_random(coco: Write) -> None:
    spec = coco([{"image_id": 1, "caption": text} for text in ("first", "second", "third")], images=1)
    plain = open_captions(spec, image_size=16, augment=False)
    samples = [plain.load(0, generator(seed)) for seed in range(4)]
    assert {sample["text"] for sample in samples} == {"first"}
    expected = read_rgb(Path(samples[0]["key"]))[:, 4:20]
    assert np.array_equal(samples[0]["image"].permute(1, 2, 0).numpy(), expected), (
        "the central square, as it is"
    )
    drawn = {open_captions(spec, image_size=16).load(0, generator(seed))["text"] for seed in range(20)}
    assert drawn == {"first", "second", "third"}


def test_batches(scenes: Path) -> None:
    data = open_captions(f"lvis:{scenes}", image_size=32)
    batch = next(SeededLoader(data, 6, collate=collate_captions).iterate())
    assert batch["images"].shape == (6, 3, 32, 32)
    assert batch["images"].dtype == torch.uint8
    assert len(batch["texts"]) == len(batch["keys"]) == 6


def test_empty_captions_are_dropped_and_counted(coco: Write, caplog: pytest.LogCaptureFixture) -> None:
    texts = [(1, " a cup \n"), (1, ""), (2, "  "), (3, None)]
    spec = coco([{"image_id": number, "caption": text} for number, text in texts])
    with caplog.at_level(logging.WARNING, logger="cfmvit.data"):
        data = open_captions(spec, image_size=16)
    assert data.texts() == ["a cup"]
    assert "dropped 3 empty captions" in caplog.text


def test_no_caption_left_is_an_error(coco: Write) -> None:
    with pytest.raises(ValueError, match=r"open_captions: .*must have an image with a caption, got none"):
        open_captions(coco([{"image_id": 1, "caption": " "}]), image_size=16)


def test_a_truncated_image_is_skipped(coco: Write, tmp_path: Path) -> None:
    spec = coco([{"image_id": number, "caption": f"thing {number}"} for number in (1, 2, 3)])
    broken = tmp_path / "images" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    (tmp_path / "images" / "3.jpg").write_bytes(b"not an image")
    loader = SeededLoader(open_captions(spec, image_size=16), 6, collate=collate_captions)
    batch = next(loader.iterate())
    assert set(batch["texts"]) == {"thing 1"}
    assert set(loader.skipped_paths) == {str(broken), str(tmp_path / "images" / "3.jpg")}
    (tmp_path / "images" / "1.jpg").unlink()
    with pytest.raises(CorruptSample, match=r"is corrupt or not an image"):
        next(loader.iterate())


def test_missing_images_are_found_when_opening(coco: Write, tmp_path: Path) -> None:
    spec = coco([{"image_id": 1, "caption": "a cup"}], images=4)
    for number in (2, 4):
        (tmp_path / "images" / f"{number}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"annotations.json refers to 2 of 4 images .*images/2.jpg"):
        open_captions(spec, image_size=16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid json"),
        ("[]", "must hold a list named images"),
        ('{"images": [], "annotations": 3}', "must hold a list named annotations"),
        ('{"images": [{"file_name": "1.jpg"}], "annotations": []}', r"images\[0\] has no id"),
        ('{"images": [{"id": "x"}], "annotations": []}', r"images\[0\] must have an integer id, got 'x'"),
        ('{"images": [], "annotations": [{"id": 1, "image_id": 1}]}', r"annotations\[0\] has no caption"),
        (
            '{"images": [], "annotations": [{"id": 1, "image_id": 5, "caption": "a"}]}',
            "refers to unknown image 5",
        ),
        ('{"images": [{"id": 1}], "annotations": []}', "image 1 has neither file_name nor coco_url"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(ValueError, match=f"captions.json.*{message}"):
        open_captions(f"{tmp_path}/captions.json@{tmp_path}", image_size=16)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("/data/coco", ValueError, "must look like coco:DIR, lvis:DIR, objects365:DIR, shards:GLOB"),
        ("coco:", ValueError, "must look like"),
        (
            "coco:/nowhere",
            FileNotFoundError,
            "/nowhere must hold annotations/captions_train2017.json .*no such folder",
        ),
        ("shards:/nowhere/*.tar", FileNotFoundError, r"no shards match /nowhere/\*.tar"),
        ("/nowhere/captions.json@/images", FileNotFoundError, "no annotations at /nowhere/captions.json"),
    ],
)
def test_specs_that_lead_nowhere(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_captions(spec, image_size=16)


def test_bad_arguments(scenes: Path) -> None:
    with pytest.raises(ValueError, match=r"crop_scale must rise within \(0, 1\]"):
        open_captions(f"lvis:{scenes}", image_size=16, crop_scale=(0.9, 0.5))
    with pytest.raises(ValueError, match="split must be train or val, got 'test'"):
        open_captions(f"lvis:{scenes}", split="test", image_size=16)
    with pytest.raises(ValueError, match="image_size must be positive, got 0"):
        open_captions(f"lvis:{scenes}", image_size=0)


def test_coco_layout_without_a_year(tmp_path: Path, coco: Write) -> None:
    coco([{"image_id": 1, "caption": "a cup"}])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations.json").rename(tmp_path / "annotations" / "captions_val.json")
    (tmp_path / "images").rename(tmp_path / "val")
    assert open_captions(f"coco:{tmp_path}", split="val", image_size=16).texts() == ["a cup"]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    value = 255 if mode == "1" else 200  # in between, a bitmap would be dithered
    image = Image.new("L", (9, 7), value).convert("RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((7, 9), 200 * 257, np.uint16))
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    pixels = read_rgb(path)
    assert pixels.shape == (7, 9, 3)
    assert abs(int(pixels.mean()) - value) <= 3


def test_a_photograph_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 7)).save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").shape == (9, 7, 3)


def test_an_empty_file_is_corrupt() -> None:
    with pytest.raises(CorruptSample, match=r"x\.jpg is corrupt") as caught:
        decode_rgb(b"", "x.jpg")
    assert caught.value.path == "x.jpg"


def test_shards_have_captions(shards: Write) -> None:
    folder = shards([{"category_id": 1}, {"category_id": 2}])
    data = open_captions(f"shards:{folder}/train-{{000..001}}.tar", image_size=16, augment=False)
    assert data.texts() == [f"a photo of thing {key}" for key in ("00", "01", "10", "11")]
    grey = [float(data.load(index, generator())["image"].float().mean()) for index in range(4)]
    assert grey == sorted(grey)
    assert grey[0] == pytest.approx(30, abs=3)
    assert open_captions(f"shards:{folder}", image_size=16).texts() == data.texts()


def test_the_json_of_scenes_is_plain_coco(scenes: Path) -> None:
    """The captions open by their explicit path too, as any COCO captions file."""
    path = scenes / "annotations" / "captions_val.json"
    data = open_captions(f"{path}@{scenes / 'val'}", image_size=32)
    assert data.texts() == [a["caption"] for a in json.loads(path.read_text())["annotations"]]
