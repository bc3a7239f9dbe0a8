"""Files of strangers: what leads out of its folder, never ends, claims too much, or comes in another form."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cfmvit.data import CorruptSample, open_captions, open_detection
from cfmvit.data.images import read_rgb
from cfmvit.data.specs import resolve
from cfmvit.detection.image_input import read_image

from .conftest import add, jpeg


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            add(tar, name, content)
    return path


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(file, kind)
    return file.getvalue()


def captions(*paths: Path, **options: Any) -> list[str]:
    place = "{" + ",".join(map(str, paths)) + "}" if len(paths) > 1 else str(paths[0])
    return open_captions(f"shards:{place}", image_size=16, **options).texts()


def test_captions_come_in_several_forms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        "a.JPG": jpeg(1),
        "a.TXT": b"one",
        "b.jpg": jpeg(2),
        "b.caption": b"two",
        "c.gif": encoded("GIF"),
        "c.json": json.dumps({"caption": "three"}).encode(),
        "d.bmp": encoded("BMP"),
        "d.json": json.dumps({"caption": ["four", "five", 6, float("nan"), " "]}).encode(),
        "e.jpg": jpeg(3),
        "e.json": b"[1]",
        "f.jpg": jpeg(4),
        "h.jpg": jpeg(5),
        "h.json": json.dumps({"caption": 6}).encode(),
        "i.jpg": jpeg(6),
        "i.txt": b"  ",
        "g.txt": b"no image",
        "a.txt": b"again",
    }
    with caplog.at_level(logging.WARNING):
        found = captions(shard(tmp_path / "a.tar", files))
    assert found == ["one", "two", "three", "four", "five"]
    for words in (
        "left out 1 samples without an image",
        "left out 1 samples without .txt or .caption or .json",
        "left out 1 files that come twice in a sample",
        r"a\.tar:h \(it has no caption, got \[6\]\)",
        r"a\.tar:i \(it has no caption, got \['  '\]\)",
        r"e\.json .*must be an object, got list",
    ):
        assert re.search(words, caplog.text), words


@pytest.mark.parametrize("how", ["empty", "cut", "gzip", "text"])
def test_a_broken_shard_is_an_error_or_counted(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = shard(tmp_path / "good.tar", {"a.jpg": jpeg(1), "a.txt": b"one"})
    whole = shard(tmp_path / "bad.tar", {"b.jpg": jpeg(2), "b.txt": b"two"}).read_bytes()
    content = {"empty": b"", "cut": whole[:1200], "gzip": gzip.compress(whole), "text": b"hello" * 300}[how]
    (tmp_path / "bad.tar").write_bytes(content)
    reason = "compressed by gzip; unpack it" if how == "gzip" else ""
    with pytest.raises(ValueError, match=rf"bad\.tar is not a whole tar: .*{reason}"):
        captions(good, tmp_path / "bad.tar")
    with caplog.at_level(logging.WARNING):
        assert captions(good, tmp_path / "bad.tar", broken_shards="skip") == ["one"]
    assert "skipped the broken shard" in caplog.text
    assert "left out 1 shards that are broken, of 2 shards" in caplog.text


def test_members_that_claim_too_much(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shard(tmp_path / "a.tar", {"a.jpg": jpeg(1), "a.txt": b"one"})
    claim = tarfile.TarInfo("b.jpg")
    claim.size = 8 * 2**30
    content = path.read_bytes()
    end = content.rindex(b"one") + tarfile.BLOCKSIZE
    path.write_bytes(content[: end - end % tarfile.BLOCKSIZE] + claim.tobuf() + bytes(2 * tarfile.BLOCKSIZE))
    with pytest.raises(ValueError, match=r"a\.tar is not a whole tar"):
        captions(path)


def test_several_boxes_a_sample(tmp_path: Path) -> None:
    labels = {
        "a": {"category_id": 1, "box_xyxy": [1, 1, 9, 9]},
        "b": {"category_id": [1, 2], "box_xyxy": [[1, 1, 9, 9], [2, 2, 8, 8]]},
    }
    files = {}
    for key, label in labels.items():
        files |= {f"{key}.jpg": jpeg(1), f"{key}.json": json.dumps(label).encode()}
    shard(tmp_path / "val-0.tar", files)
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "owl", "novel": True}]
    (tmp_path / "categories.json").write_text(json.dumps(kinds))
    data = open_detection(f"shards:{tmp_path}", split="val", base_only=False, image_size=16)
    assert [len(entry.annotations) for entry in data.entries] == [1, 2]
    truth = json.loads(data.annotations_path.read_text())
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2, 3]


def annotated(folder: Path, name: str) -> str:
    (folder / "images").mkdir(exist_ok=True)
    content = {
        "images": [{"id": 1, "file_name": name}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return f"{folder / 'a.json'}@{folder / 'images'}"


@pytest.mark.parametrize("name", ["../secret.jpg", "/dev/zero", "x/../../secret.jpg"])
def test_an_image_stays_below_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    spec = annotated(tmp_path, name)
    with pytest.raises(ValueError, match=r"a\.json: the file_name of image 1 must stay below .*images, got "):
        open_detection(spec, base_only=True, image_size=16)
    if name.startswith(".."):
        spec = annotated(tmp_path, "secret.jpg").rpartition("@")[0]
        assert len(open_detection(f"{spec}@{tmp_path}", base_only=True, image_size=16)) == 1
    inside = annotated(tmp_path, str(tmp_path / "images" / "a.jpg"))
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg(1))
    assert len(open_detection(inside, base_only=True, image_size=16)) == 1


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(2**40)
    for name, reason in (
        ("pipe", "no regular file"),
        ("zero", "no regular file"),
        ("large", "bytes, more than"),
    ):
        with pytest.raises(CorruptSample, match=f"{name}.jpg is corrupt or not an image: .*{reason}"):
            read_rgb(tmp_path / f"{name}.jpg")


def test_pictures_of_more_pixels_than_pillow_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phones take JPEG of 200 million; whatever else claims so many is refused before it is decoded."""
    Image.new("RGB", (60, 50), "red").save(tmp_path / "phone.jpg")
    Image.new("RGB", (60, 50), "red").save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    readers = (read_rgb, lambda path: read_image(path).permute(1, 2, 0).numpy())
    for read in readers:
        assert read(tmp_path / "phone.jpg").shape == (50, 60, 3)
        with pytest.raises(CorruptSample, match=r"bomb\.png .*too many pixels: .*3000 pixels"):
            read(tmp_path / "bomb.png")
    monkeypatch.setattr("cfmvit.data.images.MOST_PIXELS", 2999)
    for read in readers:
        with pytest.raises(CorruptSample, match=r"phone\.jpg .*too many pixels: .*3000 pixels"):
            read(tmp_path / "phone.jpg")


@pytest.mark.parametrize("pattern", ["a-{0..999999999999}.tar", "{0..9999}{0..9999}.tar", "a-{5..4}.tar"])
def test_a_pattern_stands_for_a_number_of_shards_that_can_be(pattern: str) -> None:
    with pytest.raises(ValueError, match="must stand for 1 to 1000000 shards, got "):
        resolve(f"shards:{pattern}", "train", "captions")
