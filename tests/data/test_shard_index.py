"""The index of a shard: made once, checked against its shard, made again where that changed, and never half-written."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfmvit.bench.loading import make_shards, opening
from cfmvit.cli import main
from cfmvit.data import CorruptSample, open_captions, shard_index
from cfmvit.data.indexing import share_indexing
from cfmvit.data.shard_index import RECORD_BYTES, SUFFIX

from .conftest import add, jpeg


def shard(path: Path, captions: list[str], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for number, text in enumerate(captions):
            add(tar, f"folder/{number:04}.jpg", jpeg(number % 200))
            add(tar, f"folder/{number:04}.txt", text.encode())
    return path


def texts(path: Path, **options: Any) -> list[str]:
    return open_captions(f"shards:{path}", image_size=16, **options).texts()


def index(path: Path) -> Path:
    return Path(f"{path}{SUFFIX}")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def test_an_index_is_small_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "a.tar", [f"thing {n}" for n in range(50)])
    assert texts(path) == [f"thing {n}" for n in range(50)]
    assert RECORD_BYTES <= 32 and index(path).stat().st_size < 50 * RECORD_BYTES + 128
    monkeypatch.setattr(shard_index, "tar_content", None)
    assert texts(path) == [f"thing {n}" for n in range(50)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", index(path).name]


def test_a_changed_shard_is_indexed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shard(tmp_path / "a.tar", ["one", "two"])
    before = open_captions(f"shards:{path}", image_size=16).fingerprint()
    shard(path, ["three", "four", "five"])
    with caplog.at_level(logging.WARNING):
        assert texts(path) == ["three", "four", "five"]
    assert "1 of 1 shards have changed: their indexes are made again" in caplog.text
    after = open_captions(f"shards:{path}", image_size=16).fingerprint()
    assert before.startswith("2 samples") and after.startswith("3 samples")
    os.utime(path, ns=(1, 1))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert open_captions(f"shards:{path}", image_size=16).fingerprint() == after, (
            "a copy is the same data"
        )
    assert "have changed" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "other"])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    path = shard(tmp_path / "a.tar", ["one", "two"])
    texts(path)
    whole = bytearray(index(path).read_bytes())
    content = {"empty": b"", "cut": whole[:-1], "header": whole[:20] + b"!" + whole[21:], "other": b"x" * 200}
    index(path).write_bytes(content[damage])
    assert texts(path) == ["one", "two"]
    assert index(path).read_bytes() == whole


def test_flipped_bits_in_the_records_are_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", ["one", "two"])
    texts(path)
    content = bytearray(index(path).read_bytes())
    content[-3] ^= 16
    index(path).write_bytes(content)
    with pytest.raises(ValueError, match=r"the index .*a\.tar.* is damaged; remove it, and it is made again"):
        texts(path)


def test_a_closed_folder_is_left_alone(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "a.tar", ["one", "two"])
    tmp_path.chmod(0o555)
    try:
        assert texts(path) == texts(path) == ["one", "two"]
    finally:
        tmp_path.chmod(0o755)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]
    assert len(list(cache.rglob(f"*{SUFFIX}"))) == 1


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_found_again(tmp_path: Path, form: int) -> None:
    name = "ü/" * 40 + "k" * 150
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        add(tar, f"{name}.txt", b"a caption")
        add(tar, f"{name}.jpg", jpeg(3))
    data = open_captions(f"shards:{tmp_path / 'a.tar'}", image_size=16)
    assert data.load(0, np.random.default_rng(0))["key"] == f"{tmp_path / 'a.tar'}:{name}"


def test_shards_that_cannot_be_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "a.tar", ["one"])
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        add(tar, "x.jpg", jpeg(1))
        add(tar, "x.cls", b"3")
    with tarfile.open(tmp_path / "c.tar", "w"):
        pass
    spec = f"{tmp_path}/{{a,b,c,d}}.tar"
    with pytest.raises(
        ValueError, match=r"b\.tar has no sample with an image and a \.txt.*2 others of 4 shards"
    ):
        texts(Path(spec))
    with caplog.at_level(logging.WARNING):
        assert texts(Path(spec), broken_shards="skip") == ["one"]
    for words in (
        "c.tar has no sample",
        "d.tar is missing",
        "left out 3 shards that are broken, of 4 shards",
    ):
        assert words in caplog.text
    with pytest.raises(
        ValueError, match=r"more than max_skipped = 2 broken shards, 3 of 4; the first are .*b\.tar has"
    ):
        texts(Path(spec), broken_shards="skip", max_skipped=2)


def test_shards_with_other_keys_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", ["one"])
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        add(tar, "x.jpg", jpeg(1))
        add(tar, "x.json", b'{"caption": "two"}')
    words = r"same files, but .*a\.tar has them in \.txt or \.caption and .*b\.tar in \.json"
    with pytest.raises(ValueError, match=words):
        texts(tmp_path / "{a,b}.tar")


def test_a_shard_that_goes_away_or_shrinks_costs_its_samples(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", ["one", "two"])
    data = open_captions(f"shards:{path}", image_size=16)
    content = path.read_bytes()
    path.write_bytes(content[:1200])
    with pytest.raises(CorruptSample, match=r"a\.tar:sample 1 is corrupt.*truncated"):
        data.load(1, np.random.default_rng(0))
    path.write_bytes(io.BytesIO(content).read().replace(b"ustar", b"noise"))
    with pytest.raises(CorruptSample, match=r"a\.tar:sample 0"):
        data.load(0, np.random.default_rng(0))
    path.unlink()
    with pytest.raises(CorruptSample, match="No such file"):
        data.load(0, np.random.default_rng(0))


def test_processes_share_the_indexing(tmp_path: Path) -> None:
    for number in range(5):
        shard(tmp_path / f"train-{number}.tar", ["one"])
    share_indexing(f"shards:{tmp_path}", "train", 1, 2)
    assert sorted(p.name for p in tmp_path.glob(f"*{SUFFIX}")) == [f"train-{n}.tar{SUFFIX}" for n in (1, 3)]
    share_indexing(f"coco:{tmp_path}", "train", 0, 2)


def test_the_command_makes_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train-0", "train-1", "val-0"):
        shard(tmp_path / f"{name}.tar", ["one", "two"])
    assert main(["index", f"shards:{tmp_path}"]) == 0
    assert capsys.readouterr().out == f"index: 6 samples in 3 shards, {3 * (92 + 64)} bytes\n"
    (tmp_path / "train-1.tar").write_bytes(b"junk" * 300)
    assert main(["index", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("index: 4 samples in 2 shards")
    assert "train-1.tar is not a whole tar" in printed.err
    assert main(["index", str(tmp_path / "other-*.tar")]) == 2
    assert "no shards match" in capsys.readouterr().err


@pytest.mark.long
def test_ten_million_samples_open_in_seconds(tmp_path: Path) -> None:
    make_shards(tmp_path, 1000)
    found = opening(tmp_path)
    assert found["samples"] == 10_000_000
    assert found["open_s"] < 5 and found["added_mb"] < 300


def test_a_size_beyond_all_numbers_is_a_broken_shard(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("a.jpg")
    entry.size = 2**80
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match=r"a.tar is not a whole tar"):
        texts(tmp_path / "a.tar")
