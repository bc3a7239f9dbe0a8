"""The configurations that the package brings: they load, and their data are read as the field's files are laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cfmvit._arguments import parse
from cfmvit._commands import config_file, protocols
from cfmvit.cli import main
from cfmvit.data import open_detection
from cfmvit.data.splits import LVIS_V1_COUNT, LVIS_V1_RARE
from cfmvit.detection import FinetuneConfig
from cfmvit.training import load_config

NAMES = [path.stem for path in protocols("finetune")]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_configuration(name: str) -> None:
    arguments = parse(["finetune", "--config", name, "data=coco:x", "model=y"])
    config = load_config(FinetuneConfig, config_file(arguments), arguments.overrides)
    assert config.data == "coco:x" and config.loop.precision == "auto"
    assert config.batch_size % config.loop.accumulate == 0
    assert config.checkpoint_activations == name.endswith("24gb")


def test_they_are_the_fields_protocols() -> None:
    assert {"lvis", "coco-ovd", "coco", "own-24gb"} <= set(NAMES)


def test_a_misspelt_name_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["finetune", "--config", "lvs", "data=coco:x", "model=y", "--output", str(tmp_path / "run")])
        == 2
    )
    assert f"must be a file, or one of {', '.join(NAMES)}, got lvs" in capsys.readouterr().err


def write(path: Path, images: list[dict[str, Any]], categories: list[dict[str, Any]]) -> None:
    """A file in COCO's form, with a picture of 40 x 30 and one box of each category in turn an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = [
        {"id": n + 1, "image_id": image["id"], "category_id": categories[n % len(categories)]["id"],
         "bbox": [2, 3, 20, 10], "area": 200, "iscrowd": 0}
        for n, image in enumerate(images)
    ]  # fmt: skip
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def test_lvis_as_it_is_published(tmp_path: Path) -> None:
    categories = [
        {
            "id": n,
            "name": f"thing_{n}",
            "synset": f"thing.n.{n}",
            "frequency": "r" if n in LVIS_V1_RARE else "f",
        }
        for n in range(1, LVIS_V1_COUNT + 1)
    ]
    images = [
        {"id": n, "width": 40, "height": 30, "coco_url": f"http://images.cocodataset.org/train2017/{n:012}.jpg",
         "neg_category_ids": [], "not_exhaustive_category_ids": []}
        for n in range(1, 21)
    ]  # fmt: skip
    write(tmp_path / "annotations" / "lvis_v1_train.json", images, categories)
    for image in images:
        picture(tmp_path / "train2017" / f"{image['id']:012}.jpg")
    data = open_detection(f"lvis:{tmp_path}", base_only=True, image_size=64, vocabulary="lvis")
    assert data.summary.startswith(f"lvis:{tmp_path} (train): 1203 categories (866 base, 337 novel")
    assert len(data) == 20 - sum(n in LVIS_V1_RARE for n in range(1, 21))
    factors = data.repeat_factors(1.0)
    assert (factors > 1).all() and len(factors) == len(data)


@pytest.mark.parametrize(
    ("annotations", "name", "place"),
    [
        ("annotations/zhiyuan_objv2_val.json", "images/v1/patch8/objects365_v1_00420917.jpg", "val/patch8"),
        ("annotations/objects365_val.json", "obj365_val_000000000031.jpg", "val"),
    ],
)
def test_objects365_is_for_transfer(tmp_path: Path, annotations: str, name: str, place: str) -> None:
    categories = [{"id": 1, "name": "Person"}, {"id": 2, "name": "Cabinet/shelf"}]
    write(tmp_path / annotations, [{"id": 5, "width": 40, "height": 30, "file_name": name}], categories)
    picture(tmp_path / place / Path(name).name)
    data = open_detection(
        f"objects365:{tmp_path}", split="val", base_only=False, image_size=64, vocabulary="transfer"
    )
    assert data.load_image(0)["original_size"] == (30, 40)
    assert all(category.novel for category in data.categories)


@pytest.mark.parametrize("kind", ["coco", "lvis", "objects365"])
def test_what_is_missing_is_named_with_its_home(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", f"data={kind}:{tmp_path}", "model=x", "--output", str(tmp_path / "run")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} must hold annotations/" in error and "; get it from https://" in error
