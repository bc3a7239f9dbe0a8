"""The frame that annotations are in: stored pixels, upright ones, or another size; and what of a file is taken."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfmvit.data import CorruptSample, DetectionDataset, open_detection
from cfmvit.data.images import rgb

BOX = [4, 2, 8, 6]  # x, y, width, height in the upright frame of 24 x 16
MASK = [[4, 2, 12, 2, 12, 8, 4, 8]]


def picture() -> Image.Image:
    """24 x 16 upright; a red rectangle fills the box."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[2:8, 4:12] = (255, 0, 0)
    return Image.fromarray(pixels)


def write(folder: Path, image: Image.Image, size: tuple[int, int] | None, exif: int = 1, **more: Any) -> str:
    tags = Image.Exif()
    tags[0x0112] = exif
    image.save(folder / "a.png", exif=tags)
    entry = {"id": 1, "file_name": "a.png"}
    if size is not None:
        entry |= {"width": size[0], "height": size[1]}
    content = {
        "images": [entry],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "segmentation": MASK, **more}
        ],
    }
    (folder / "a.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    return f"{folder / 'a.json'}@{folder}"


def opened(spec: str, **options: Any) -> DetectionDataset:
    return open_detection(spec, base_only=True, image_size=24, **options)


def check(sample: dict[str, Any], original: tuple[int, int]) -> None:
    """The box and the mask lie on the red rectangle."""
    red = sample["image"][0].numpy() > 127
    rows, columns = np.nonzero(red)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(sample["boxes"][0].numpy(), box, atol=1)
    assert (sample["masks"][0].numpy() == red).mean() > 0.95
    assert sample["original_size"] == original


@pytest.mark.parametrize(("exif", "turn"), [(6, 90), (8, -90)])
def test_annotations_for_the_upright_image(tmp_path: Path, exif: int, turn: int) -> None:
    stored = picture().rotate(turn, expand=True)
    dataset = opened(write(tmp_path, stored, (24, 16), exif))
    check(dataset.load(0, np.random.default_rng(0)), (16, 24))
    assert not dataset.load_image(0)["remarks"]


def test_annotations_for_the_stored_image(tmp_path: Path) -> None:
    check(opened(write(tmp_path, picture(), (24, 16), 6)).load(0, np.random.default_rng(0)), (16, 24))
    spec = write(tmp_path, picture(), None, 6)
    check(opened(spec, orientation="stored").load(0, np.random.default_rng(0)), (16, 24))


@pytest.mark.parametrize(("exif", "turn"), [(3, 180), (6, 90), (8, -90)])
@pytest.mark.parametrize("square", [True, False])
def test_where_sizes_do_not_tell_an_image_is_taken_upright(
    tmp_path: Path, exif: int, turn: int, square: bool
) -> None:
    upright = picture().crop((0, 0, 24, 24 if square else 16))
    size = (24, 24) if square else (24, 16) if exif == 3 else None
    spec = write(tmp_path, upright.rotate(turn, expand=True), size, exif)
    sample = opened(spec).load(0, np.random.default_rng(0))
    red = sample["image"][0].numpy() > 127
    assert red[2:8, 4:12].all()
    assert sample["remarks"][0].startswith(f"it has the EXIF orientation {exif} and a size that does not say")
    assert not opened(spec, orientation="upright").load(0, np.random.default_rng(0))["remarks"]
    stored = opened(spec, orientation="stored").load_image(0)["image"][0].numpy() > 127
    assert not stored[2:8, 4:12].all()
    with pytest.raises(ValueError, match="orientation must be one of auto, stored, upright, got 'no'"):
        opened(spec, orientation="no")


def test_an_image_smaller_than_the_file_says(tmp_path: Path) -> None:
    spec = write(tmp_path, picture().resize((12, 8), Image.Resampling.NEAREST), (24, 16))
    sample = opened(spec).load(0, np.random.default_rng(0))
    check(sample, (16, 24))
    assert sample["remarks"] == [
        "it has 12 x 8 pixels, where its annotations are for 24 x 16: they are scaled"
    ]
    with pytest.raises(CorruptSample, match=r"a\.png .* it has 12 x 8 pixels"):
        opened(spec, size_mismatch="skip").load(0, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"a\.png has 12 x 8 pixels, where its annotations are for 24 x 16"):
        opened(spec, size_mismatch="error").load(0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="size_mismatch must be one of scale, skip, error, got 'no'"):
        opened(spec, size_mismatch="no")


def test_an_upright_frame_of_another_size(tmp_path: Path) -> None:
    stored = picture().rotate(90, expand=True).resize((8, 12), Image.Resampling.NEAREST)
    check(opened(write(tmp_path, stored, (24, 16), 6)).load(0, np.random.default_rng(0)), (16, 24))


def test_prediction_reads_the_image_alone(tmp_path: Path) -> None:
    spec = write(tmp_path, picture(), None, segmentation={"size": [5, 5], "counts": "0P"})
    with pytest.raises(ValueError, match="must have an image with a usable box"):
        opened(spec)
    spec = write(tmp_path, picture(), (24, 16))
    dataset = opened(spec)
    dataset.entries[0].annotations[0]["segmentation"] = "junk"
    assert dataset.load_image(0)["image"].shape == (3, 24, 24)
    sample = dataset.load(0, np.random.default_rng(0))
    assert len(sample["boxes"]) == 0
    assert "annotation 1 has no mask" in sample["remarks"][0]


def test_a_box_without_a_segmentation_teaches_no_mask(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, picture(), (24, 16), segmentation=[]))
    assert not dataset.masks
    sample = dataset.load(0, np.random.default_rng(0))
    assert sample["has_mask"].tolist() == [False]
    assert opened(write(tmp_path, picture(), (24, 16))).masks


def test_one_line_says_what_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = write(tmp_path, picture(), (24, 16))
    path = tmp_path / "a.json"
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    first = content["annotations"][0]
    content["categories"].append({"id": 2, "name": "blue", "novel": True})
    content["images"] += [{**content["images"][0], "id": number} for number in (2, 3)]
    content["annotations"] += [
        {**first, "id": 2, "iscrowd": 1},
        {**first, "id": 3, "segmentation": MASK[0]},
        {**first, "id": 4, "category_id": 2, "image_id": 2},
        {**first, "id": 5, "bbox": [0, 0, 0, 1]},
    ]
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        dataset = opened(spec)
    assert dataset.summary == (
        f"{spec} (train): 2 categories (1 base, 1 novel: as the file's novel says); 1 of 3 images (0 without a box); "
        "1 boxes, 1 of other categories, 1 crowds and 2 malformed ones left out"
    )
    assert "dropped 1 annotations" in caplog.text
    assert "no list of polygons" in caplog.text
    assert len(opened(spec, negatives=True)) == 2, "an image with novel objects alone is no background"
    first["iscrowd"] = "0"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="iscrowd of annotation 1 must be 0 or 1, got '0'"):
        opened(spec)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32896, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
    ],
)
def test_pixels_are_scaled_by_their_range(
    values: np.ndarray, expected: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for image in (Image.fromarray(values), _through_a_file(values, tmp_path)):
        found = rgb(image, "x")
        assert found.shape == (1, 3, 3)
        np.testing.assert_allclose(found[0, :, 0], expected, atol=1)


def _through_a_file(values: np.ndarray, folder: Path) -> Image.Image:
    Image.fromarray(values).save(folder / "a.tif")
    return Image.open(folder / "a.tif")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 1.5]], np.float32), "x: floating-point pixels must lie in 0..1, got 0 to 1.5"),
        (np.array([[0, np.nan]], np.float32), "must lie in 0..1, got nan"),
        (np.array([[-1, 5]], np.int32), "x: 32-bit pixels must not be negative, got -1"),
    ],
)
def test_pixels_of_no_known_range_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rgb(Image.fromarray(values), "x")
