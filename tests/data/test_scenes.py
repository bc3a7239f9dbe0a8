"""The embedded scenes: a pure function of their configuration, and what LVIS files say holds for them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as codec

from cfmvit.data.images import read_rgb
from cfmvit.data.masks import decode_mask
from cfmvit.data.scenes import ScenesConfig, SplitConfig, compositions, make_scenes
from cfmvit.data.scenes.dealing import deal
from cfmvit.data.scenes.drawing import sprite
from cfmvit.data.scenes.layout import compose_scene
from cfmvit.data.scenes.vocabulary import COLOURS, SHAPES, TEXTURES, Composition


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / name).read_text())


def test_the_same_config_gives_the_same_bytes(
    tmp_path: Path, scenes: Path, scenes_config: ScenesConfig
) -> None:
    again = make_scenes(tmp_path / "again", scenes_config)
    assert digest(again) == digest(scenes)


def test_another_seed_gives_other_images_and_novel_categories(
    tmp_path: Path, scenes: Path, scenes_config: ScenesConfig
) -> None:
    other = make_scenes(tmp_path / "other", replace(scenes_config, seed=1))
    mine, theirs = digest(scenes), digest(other)
    assert all(mine[name] != theirs[name] for name in mine if name.endswith(".jpg"))
    frequency = [
        [c["frequency"] for c in read(root, "lvis_v1_val.json")["categories"]] for root in (scenes, other)
    ]
    assert frequency[0] != frequency[1]


def test_many_processes_draw_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = SplitConfig(images=40, size=32, objects=(1, 1), scale=(12, 16))
    config = ScenesConfig(pretrain=split, train=replace(split, images=0), val=replace(split, images=0))
    monkeypatch.setattr("cfmvit.data.parallel._CHUNK", 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    many = make_scenes(tmp_path / "many", config)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert digest(many) == digest(make_scenes(tmp_path / "one", config))


def test_a_second_call_reuses_the_files_and_another_config_replaces_them(tmp_path: Path) -> None:
    split = SplitConfig(images=2, size=32, objects=(1, 1), scale=(12, 16))
    config = ScenesConfig(pretrain=split, train=split, val=split)
    root = make_scenes(tmp_path / "data", config)
    image = root / "train" / "00000001.jpg"
    image.write_bytes(b"touched")
    make_scenes(root, config)
    assert image.read_bytes() == b"touched"
    image.unlink()
    make_scenes(root, config)
    assert read_rgb(image).shape == (32, 32, 3)
    make_scenes(root, replace(config, val=replace(split, images=1)))
    assert len(list((root / "val").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_other_content_is_never_overwritten(tmp_path: Path, scenes_config: ScenesConfig) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"make_scenes: root must be a new or empty folder.*other content"):
        make_scenes(tmp_path, scenes_config)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_failure_leaves_nothing(
    tmp_path: Path, scenes_config: ScenesConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cfmvit.data.scenes.make.write_lvis", fail)
    with pytest.raises(OSError, match="disk full"):
        make_scenes(tmp_path / "data", scenes_config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colours": 99}, r"make_scenes: colours must lie in 1 \.\. 9, got 99"),
        ({"colours": 1, "textures": 1}, "two of colours, textures, shapes must be at least 2"),
        ({"min_visible": 0.0}, r"min_visible must lie in \(0, 1\], got 0.0"),
        ({"val": SplitConfig(images=1, size=64, scale=(24, 64))}, "val.scale must rise"),
        ({"train": SplitConfig(images=1, size=64, objects=(3, 2))}, "train.objects must rise"),
        ({"train": SplitConfig(images=1, size=64, objects=(6, 6))}, "at most half"),
    ],
)
def test_a_config_that_can_not_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scenes(tmp_path / "data", replace(ScenesConfig(), **changes))
    assert list(tmp_path.iterdir()) == []


def test_at_least_120_categories_by_default_a_third_of_them_novel() -> None:
    config = ScenesConfig()
    found = compositions(config.colours, config.textures, config.shapes, config.seed)
    assert len(found) >= 120
    assert sum(c.novel for c in found) == pytest.approx(len(found) / 3, abs=1)
    assert len({c.name for c in found}) == len(found)


@pytest.mark.parametrize("counts", [(2, 1, 2), (1, 2, 2), (4, 1, 2), (3, 3, 3), (6, 7, 3), (9, 7, 14)])
@pytest.mark.parametrize("seed", range(3))
def test_every_word_of_a_novel_category_is_in_a_base_one(counts: tuple[int, int, int], seed: int) -> None:
    found = compositions(*counts, seed=seed)
    base = {word for c in found if not c.novel for word in (c.colour, c.texture, c.shape)}
    novel = {word for c in found if c.novel for word in (c.colour, c.texture, c.shape)}
    assert novel
    assert novel <= base


def test_novel_categories_are_in_captions_and_never_boxed_in_training(scenes: Path) -> None:
    train, val = read(scenes, "lvis_v1_train.json"), read(scenes, "lvis_v1_val.json")
    novel = {c["id"]: c["name"] for c in train["categories"] if c["frequency"] == "r"}
    assert 5 <= len(novel) <= 7  # of 18
    assert not novel.keys() & {a["category_id"] for a in train["annotations"]}
    assert novel.keys() == novel.keys() & {a["category_id"] for a in val["annotations"]}
    captions = " | ".join(a["caption"] for a in read(scenes, "captions_train.json")["annotations"])
    assert all(name in captions for name in novel.values())
    # They stand in training images all the same: as the counts say, and as the images that are not exhaustive.
    assert all(c["image_count"] >= 1 for c in train["categories"] if c["id"] in novel)
    assert novel.keys() == {
        number for image in train["images"] for number in image["not_exhaustive_category_ids"]
    }


def test_novel_objects_can_be_kept_out_of_training_images(
    tmp_path: Path, scenes_config: ScenesConfig
) -> None:
    root = make_scenes(tmp_path / "data", replace(scenes_config, novel_in_train=False))
    categories = read(root, "lvis_v1_train.json")["categories"]
    assert {c["image_count"] == 0 for c in categories if c["frequency"] == "r"} == {True}


def test_frequencies_follow_the_number_of_training_images(tmp_path: Path) -> None:
    tiny = SplitConfig(images=1, size=32, objects=(1, 1), scale=(8, 10))
    train = SplitConfig(images=160, size=32, objects=(1, 3), scale=(8, 10), tail=0.8)
    config = ScenesConfig(colours=4, textures=3, shapes=2, pretrain=tiny, train=train, val=tiny)
    root = make_scenes(tmp_path / "data", config)
    entries = read(root, "lvis_v1_train.json")["categories"]
    count = {f: [c["image_count"] for c in entries if c["frequency"] == f] for f in "rcf"}
    # 160 x 2 objects and 24 categories: at most 3 images are rare, at most 30 common.
    assert max(count["r"]) <= 3 < min(count["c"])
    assert max(count["c"]) <= 30 < min(count["f"])
    assert len(count["r"]) == 8
    # Validation images say the same of a category, though it has other counts there.
    assert [c["frequency"] for c in read(root, "lvis_v1_val.json")["categories"]] == [
        c["frequency"] for c in entries
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_file_is_lvis(scenes: Path, split: str) -> None:
    content = read(scenes, f"lvis_v1_{split}.json")
    known = {c["id"] for c in content["categories"]}
    assert known == set(range(1, 19))
    annotations = {image["id"]: [] for image in content["images"]}
    for number, a in enumerate(content["annotations"], start=1):
        assert a["id"] == number
        annotations[a["image_id"]].append(a)
    for image in content["images"]:
        assert image["coco_url"].endswith(f"/{split}/{image['file_name']}")
        assert read_rgb(scenes / split / image["file_name"]).shape == (96, 96, 3)
        assert (image["height"], image["width"]) == (96, 96)
        present = {a["category_id"] for a in annotations[image["id"]]}
        assert not present & set(image["not_exhaustive_category_ids"])
        hidden = set(image["not_exhaustive_category_ids"])
        assert set(image["neg_category_ids"]) == known - present - hidden, "all that is absent is verified"
        masks = [decode_mask(a, 96, 96) for a in annotations[image["id"]]]
        for a, mask in zip(annotations[image["id"]], masks):
            assert mask.sum() == a["area"]
            assert codec.toBbox(a["segmentation"]).tolist() == a["bbox"]
        assert sum(masks, np.zeros((96, 96), int)).max() <= 1, "visible regions must not overlap"


def test_captions_name_what_the_boxes_show(scenes: Path) -> None:
    content, captions = read(scenes, "lvis_v1_val.json"), read(scenes, "captions_val.json")
    name = {c["id"]: c["name"] for c in content["categories"]}
    text = {a["image_id"]: a["caption"] for a in captions["annotations"]}
    for image in content["images"]:
        shown = {name[a["category_id"]] for a in content["annotations"] if a["image_id"] == image["id"]}
        assert {n for n in name.values() if n in text[image["id"]]} == shown
    assert len({caption.split(shape)[0][:8] for caption in text.values() for shape in ["red"]}) > 3, (
        "one wording"
    )


def test_objects_stay_visible_and_of_their_colour() -> None:
    categories = compositions(4, 1, 8, 0)
    split = SplitConfig(images=1, size=96, objects=(4, 4), scale=(30, 44))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        chosen = [categories[number] for number in rng.choice(len(categories), 4, replace=False)]
        pixels, placed = compose_scene(chosen, split, 0.6, rng)
        assert placed
        for item in placed:
            assert np.count_nonzero(item.mask) >= 0.6 * item.whole
            seen = np.median(pixels[item.mask], axis=0)
            distance = {word: float(np.abs(seen - rgb).sum()) for word, rgb in COLOURS.items()}
            assert min(distance, key=distance.__getitem__) == item.category.colour


def test_shapes_differ_from_each_other() -> None:
    """Of two shapes drawn alike, at 24 px, a fair share of the pixels differs."""
    masks = {}
    for shape in SHAPES:
        item = sprite(Composition(1, "red", "plain", shape, False), 24, np.random.default_rng(0))
        assert 0.12 < item.solid.mean() < 0.75, shape
        assert not (item.solid[[0, -1]] | item.solid[:, [0, -1]].T).any(), f"{shape} touches the edge"
        masks[shape] = item.solid
    for first in SHAPES:
        for second in SHAPES[: SHAPES.index(first)]:
            union = (masks[first] | masks[second]).sum()
            assert (masks[first] ^ masks[second]).sum() / union > 0.1, (first, second)


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_show_at_24_pixels(texture: str) -> None:
    item = sprite(Composition(1, "red", texture, "square", False), 24, np.random.default_rng(0))
    inner = item.colours[7:-7, 7:-7]
    if texture == "plain":
        assert inner[..., 1].std() < 12
    else:
        light, dark = (inner.min(-1) > 150).mean(), (inner.max(-1) < 90).mean()
        share = light if texture.startswith("white") else dark
        assert 0.12 < share < 0.65
        assert (light > 0) != (dark > 0)


def test_dealing_gives_every_image_its_number_of_different_categories() -> None:
    categories = compositions(3, 2, 3, 0)
    split = SplitConfig(images=300, size=64, objects=(2, 5), scale=(8, 10), tail=1.0)
    hands = deal(categories, split, np.random.default_rng(0), novel_quota=3)
    assert all(len({c.id for c in hand}) == len(hand) for hand in hands)
    assert np.mean([len(hand) for hand in hands]) == pytest.approx(3.5, abs=0.2)
    count = np.bincount([c.id for hand in hands for c in hand], minlength=19)
    assert all(count[c.id] <= 3 for c in categories if c.novel)
    assert min(count[c.id] for c in categories if not c.novel) > 3
