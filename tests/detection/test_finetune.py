"""Finetuning from files to a detector on disk, and exact resume; on generated scenes and on real photographs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cfmvit.data import open_detection
from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.detection import Detector, FinetuneConfig, FinetuneOptim, finetune, predict_dataset
from cfmvit.detection.config import HeadConfig, ScoreConfig
from cfmvit.evaluation import evaluate_results
from cfmvit.models import CFMViT
from cfmvit.training import LoopConfig
from cfmvit.training.checkpoint import checkpoints

from .small_detector import small_config, small_model


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Return a folder of a few scenes."""
    split = SplitConfig(images=6, size=96, objects=(1, 2), scale=(24, 40))
    config = ScenesConfig(
        colours=2, textures=2, shapes=2, pretrain=replace(split, images=1), train=split, val=split
    )
    return make_scenes(tmp_path_factory.mktemp("scenes") / "data", config)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """Return the folder of a model with fresh weights."""
    folder = tmp_path_factory.mktemp("model") / "model"
    small_model().save_pretrained(folder)
    return folder


def config(model: Path, data: str, steps: int = 4, **options: object) -> FinetuneConfig:
    return FinetuneConfig(
        model=str(model),
        data=data,
        batch_size=2,
        device="cpu",
        detector=small_config(),
        optim=FinetuneOptim(name="adamw", lr=1e-3, warmup=2),
        loop=LoopConfig(steps=steps, log_every=1, save_every=2, **options),
    )


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    scenes, pretrained, tmp_path, capsys, monkeypatch
):
    settings = config(pretrained, f"lvis:{scenes}")
    whole = finetune(settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        losses, calls = Detector.losses, []

        def stop_at_the_fourth(*arguments):
            calls.append(None)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return losses(*arguments)

        patch.setattr(Detector, "losses", stop_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            finetune(settings, tmp_path / "parts")
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["00000002"]
    assert not (tmp_path / "parts/detector").exists()
    # The checkpoint alone says how to go on: another tower in the model's folder changes nothing.
    shutil.rmtree(pretrained)
    small_model(seed=1).save_pretrained(pretrained)
    parts = finetune(settings, tmp_path / "parts", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    for run in ("whole", "parts"):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]


def test_a_tower_with_no_learning_rate_stays(scenes, pretrained, tmp_path):
    settings = config(pretrained, f"lvis:{scenes}", steps=2)
    optim = replace(settings.optim, backbone_lr_ratio=0.0)
    detector = finetune(replace(settings, optim=optim), tmp_path / "run")
    before = CFMViT.from_pretrained(pretrained).visual.state_dict()
    for name, value in detector.visual.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in detector.visual.parameters())


def test_repeated_images_and_activations_resume_exactly(scenes, pretrained, tmp_path):
    """What comes again by its rare categories, with blocks that are computed again."""
    for name, steps in (("whole", 4), ("parts", 2)):
        settings = config(pretrained, f"lvis:{scenes}", steps=steps, precision="bf16")
        settings = replace(settings, repeat_threshold=1.0, checkpoint_activations=True)
        settings = replace(settings, optim=replace(settings.optim, milestones=(), warmup=1))
        finetune(settings, tmp_path / name)
    again = replace(settings, loop=replace(settings.loop, steps=4), checkpoint_activations=False)
    found = finetune(again, tmp_path / "parts", resume=True)
    whole = Detector.from_pretrained(tmp_path / "whole/detector").state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_the_detector_knows_its_base_categories_and_predicts_all(scenes, pretrained, tmp_path, capsys):
    finetune(config(pretrained, f"lvis:{scenes}", steps=2), tmp_path / "run")
    detector = Detector.from_pretrained(tmp_path / "run/detector")
    dataset = open_detection(f"lvis:{scenes}", split="val", base_only=False, image_size=96)
    novel = {category.name for category in dataset.categories if category.novel}
    assert novel
    assert set(detector.config.base_labels) == {category.name for category in dataset.categories} - novel
    path = predict_dataset(detector, dataset, tmp_path / "run", batch_size=4)
    results = json.loads(path.read_text())
    assert {result["image_id"] for result in results} == {image + 1 for image in range(6)}
    assert {result["category_id"] for result in results} <= {category.id for category in dataset.categories}
    metrics = evaluate_results(path, dataset.annotations_path, iou_types=("bbox", "segm"))
    assert 0 <= metrics["bbox"]["AP50"] <= 1
    assert not list((tmp_path / "run").glob(".results*"))


def test_categories_of_other_data_are_weighed_as_novel(scenes, make_detector, tmp_path):
    dataset = open_detection(f"lvis:{scenes}", split="val", base_only=False, image_size=96)
    names = tuple(category.name for category in dataset.categories)
    scores = []
    for base in ((), names):
        torch.manual_seed(0)
        path = predict_dataset(make_detector(base_labels=base), dataset, tmp_path / str(len(base)))
        scores.append([item["score"] for item in json.loads(path.read_text())])
    assert scores[0] and scores[0] != scores[1]


def test_options_that_must_be_given(scenes, pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"finetune: model must be given"):
        finetune(replace(config(pretrained, f"lvis:{scenes}"), model=""), tmp_path / "run")
    with pytest.raises(ValueError, match=r"finetune: data must be given"):
        finetune(config(pretrained, ""), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors there"):
        finetune(config(tmp_path / "none", f"lvis:{scenes}"), tmp_path / "run")


def test_a_model_without_a_tokenizer_is_refused_before_anything_is_written(scenes, tmp_path):
    model = small_model()
    model.tokenizer = None
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="tokenizer"):
        finetune(config(tmp_path / "model", f"lvis:{scenes}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (FinetuneOptim, {"lr": -1.0}, "optim.lr must be positive, got -1.0"),
        (FinetuneOptim, {"lr": float("inf")}, "optim.lr must be finite, got inf"),
        (FinetuneOptim, {"momentum": 1.0}, "optim.momentum must be at least 0 and below 1, got 1.0"),
        (FinetuneOptim, {"backbone_lr_ratio": -1.0}, "optim.backbone_lr_ratio must be at least 0"),
        (FinetuneOptim, {"milestones": (5.0,)}, "optim.milestones must be fractions of the run"),
        (HeadConfig, {"convs": -1}, "heads.convs must be at least 0, got -1"),
        (ScoreConfig, {"center_power": -3.0}, "scores.center_power must be at least 0"),
    ],
)
def test_options_out_of_range(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_real_photographs_with_the_48_17_split(shared_data, pretrained, tmp_path, capsys):
    data = f"coco:{shared_data / 'coco-tiny'}"
    finetune(config(pretrained, data, steps=3), tmp_path / "run")
    detector = Detector.from_pretrained(tmp_path / "run/detector")
    assert len(detector.config.base_labels) == 48
    dataset = open_detection(data, split="val", base_only=False, image_size=96)
    assert sum(category.novel for category in dataset.categories) == 17
    path = predict_dataset(detector, dataset, tmp_path / "run", batch_size=8)
    base = {category.id for category in dataset.categories if not category.novel}
    novel = {category.id for category in dataset.categories if category.novel}
    metrics = evaluate_results(path, dataset.annotations_path, base_ids=base, novel_ids=novel)
    assert metrics["bbox"].keys() >= {"AP50_base", "AP50_novel"}
