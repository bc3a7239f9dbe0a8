"""Small data on disk."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes


def small_config(**changes: Any) -> ScenesConfig:
    values: dict[str, Any] = {
        "colours": 3,
        "textures": 2,
        "shapes": 3,
        "pretrain": SplitConfig(images=20, size=48, objects=(1, 2), scale=(16, 24)),
        "train": SplitConfig(images=60, size=96, objects=(2, 3), scale=(20, 32), tail=0.8),
        "val": SplitConfig(images=12, size=96, objects=(2, 3), scale=(20, 32)),
    }
    return ScenesConfig(**{**values, **changes})


@pytest.fixture(scope="session")
def scenes_config() -> ScenesConfig:
    return small_config()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, scenes_config: ScenesConfig) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes") / "data", scenes_config)


def jpeg(value: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """An image (width, height) of noise around a grey value."""
    rng = np.random.default_rng(value)
    pixels = np.clip(value + rng.integers(-8, 9, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., str]:
    """Write a COCO-like file with images 1, 2, ... of 24 x 16 pixels; return the spec."""

    def write(annotations: list[dict[str, Any]], *, images: int = 3, **content: Any) -> str:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        listed = []
        for number in range(1, images + 1):
            (folder / f"{number}.jpg").write_bytes(jpeg(40 * number))
            listed.append({"id": number, "file_name": f"{number}.jpg", "width": 24, "height": 16})
        categories = [{"id": 7, "name": "red_cup"}, {"id": 9, "name": "dog"}]
        numbered = [{"id": number, **a} for number, a in enumerate(annotations, start=1)]
        content = {"images": listed, "annotations": numbered, "categories": categories, **content}
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        return f"{tmp_path / 'annotations.json'}@{folder}"

    return write


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of WebDataset shards with two samples each."""

    def write(labels: list[dict[str, Any]], names: tuple[str, ...] = ("train-000", "train-001")) -> Path:
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        kinds = [{"id": 1, "name": "cat", "novel": False}, {"id": 2, "name": "owl", "novel": True}]
        (folder / "categories.json").write_text(json.dumps(kinds))
        for number, name in enumerate(names):
            with tarfile.open(folder / f"{name}.tar", "w") as tar:
                for row, label in enumerate(labels):
                    key = f"{number}{row}"
                    add(tar, f"{key}.jpg", jpeg(30 * (number * len(labels) + row + 1)))
                    add(tar, f"{key}.txt", f"a photo of thing {key}".encode())
                    add(tar, f"{key}.json", json.dumps(label).encode())
        return folder

    return write


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
