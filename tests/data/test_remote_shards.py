"""Shards behind a URL: the same samples, by range reads, with indexes that are kept here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfmvit.cli import main
from cfmvit.data import SeededLoader, collate_captions, open_captions, open_detection, shard_index, storage
from cfmvit.data.shard_index import SUFFIX

fsspec = pytest.importorskip("fsspec")
LABELS = [{"category_id": 1, "box_xyxy": [1, 1, 9, 9]}, {"category_id": 2, "box_xyxy": [1, 1, 9, 9]}]


@pytest.fixture
def here(shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shards(LABELS)


@pytest.fixture
def there(here: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for path in here.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def opened(place: str) -> Any:
    return open_captions(f"shards:{place}", image_size=16)


@pytest.mark.parametrize("form", ["train-{{000..001}}.tar", "train-*.tar", ""])
def test_they_are_the_same_samples(here: Path, there: str, form: str) -> None:
    mine, theirs = opened(str(here)), opened(f"{there}/{form.replace('{{', '{').replace('}}', '}')}")
    assert theirs.fingerprint() == mine.fingerprint()
    for index in range(4):
        a, b = (data.load(index, np.random.default_rng(7)) for data in (mine, theirs))
        assert a["text"] == b["text"] and (a["image"] == b["image"]).all()
        assert b["key"].startswith("memory://") and b["key"].endswith(Path(a["key"]).name)


def test_file_urls_are_files(here: Path) -> None:
    assert opened(f"file://{here}/train-000.tar").texts() == opened(f"{here}/train-000.tar").texts()


def test_a_sample_is_one_request(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, requests, real = opened(f"{there}/"), [], storage._read_range
    monkeypatch.setattr(storage, "_read_range", lambda *words: requests.append(words) or real(*words))
    data.load(2, np.random.default_rng(0))
    assert len(requests) == 1


def test_an_index_beside_them_is_taken(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", f"shards:{there}/"]) == 0
    assert capsys.readouterr().out.startswith("index: 4 samples in 2 shards, ")
    memory = fsspec.filesystem("memory")
    assert memory.exists(f"/bucket/train-000.tar{SUFFIX}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(shard_index, "tar_content", None)
    assert len(opened(f"{there}/train-*.tar").texts()) == 4
    assert len(list((tmp_path / "another").rglob(f"*{SUFFIX}"))) == 2


def test_workers_read_them(there: str) -> None:
    loader = SeededLoader(opened(f"{there}/"), 2, workers=2, collate=collate_captions)
    alone = SeededLoader(opened(f"{there}/"), 2, collate=collate_captions)
    for _, a, b in zip(range(3), loader.iterate(), alone.iterate()):
        assert a["keys"] == b["keys"]


def test_boxes_come_from_there_too(there: str) -> None:
    data = open_detection(f"shards:{there}/", base_only=False, image_size=16)
    assert [category.name for category in data.categories] == ["cat", "owl"]
    assert len(data) == 4


def test_without_the_package_it_is_named(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        opened("nonsense://bucket/a.tar")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ImportError, match=r'needs fsspec; install it with: pip install "cfmvit\[remote\]"'):
        opened(f"{there}/")
