"""Evaluation while training: what it finds, on any number of ranks, and that training never notices."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cfmvit.cli import main
from cfmvit.data import open_captions, open_detection
from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.evaluation import class_embeddings, classify_regions, evaluate_retrieval
from cfmvit.models import CFMViT, Tokenizer, create_model
from cfmvit.pretrain import PretrainConfig, pretrain
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.pretrain.held_out import held_out
from cfmvit.training import LoopConfig, NonFiniteLossError, World
from tests.processes import be_rank, exit_codes

from .small_run import TINY, config, weights

FOUND = {f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Scenes with held-out ones, which have boxes; one of these has a second caption."""
    root = tmp_path_factory.mktemp("held-out") / "data"
    small = SplitConfig(images=60, size=64)
    held_out = SplitConfig(images=21, size=64)
    make_scenes(root, ScenesConfig(pretrain=small, train=replace(small, images=0), val=held_out))
    path = root / "annotations" / "captions_val.json"
    content = json.loads(path.read_text())
    content["annotations"].append({**content["annotations"][3], "id": 9999, "caption": "something else"})
    path.write_text(json.dumps(content))
    return f"lvis:{root}"


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_finds_what_the_evaluations_find_and_training_never_notices(data: str, tmp_path: Path) -> None:
    loop = LoopConfig(steps=6, log_every=4, save_every=3, accumulate=2)
    pretrain(config(data, loop=loop, workers=1), tmp_path / "without")
    pretrain(config(data, loop=loop, workers=1, eval_every=2, device_tflops=1), tmp_path / "with")
    one, other = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert all(torch.equal(one[name], other[name]) for name in one)
    records = log(tmp_path / "with")
    assert [record["step"] for record in records] == [1, 3, 5]
    assert all(record.keys() >= FOUND and 0 <= record["data_wait"] < 1 for record in records)
    assert "mfu" not in log(tmp_path / "without")[0]
    per_image = {record["mfu"] / record["images_per_s"] for record in records}
    assert max(per_image) == pytest.approx(min(per_image))
    before = {record["step"]: record["loss"] for record in log(tmp_path / "without")}
    assert {step: loss for step, loss in before.items() if step != 5} == {3: records[1]["loss"]}

    model = CFMViT.from_pretrained(tmp_path / "with" / "model")
    captions = open_captions(data, split="val", image_size=64, augment=False)
    assert len(captions.texts()) == 22
    found = evaluate_retrieval(model, [captions.load_whole(index) for index in range(len(captions))])
    regions = open_detection(data, split="val", base_only=False, image_size=128)
    names = [category.name for category in regions.categories]
    accuracy = classify_regions(model, regions, class_embeddings(model, names, ("a photo of a {}",)))
    found |= {f"regions_{name}": value for name, value in accuracy.items()}
    assert {name: records[-1][name] for name in found} == pytest.approx(found, abs=1e-6)
    assert found["text_to_image_R@10"] > 0


def test_a_resumed_run_evaluates_as_one_that_was_not_interrupted(data: str, tmp_path: Path) -> None:
    settings = config(data, eval_every=2)
    pretrain(settings, tmp_path / "whole")
    real, calls = ContrastiveGradients.__call__, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveGradients, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            pretrain(settings, tmp_path / "broken")
    pretrain(settings, tmp_path / "broken", resume=True)
    speed = {"images_per_s", "data_wait"}
    whole, broken = (
        [{name: value for name, value in record.items() if name not in speed} for record in log(folder)]
        for folder in (tmp_path / "whole", tmp_path / "broken")
    )
    assert whole == broken


def _run(rank: int, size: int, port: int, data: str, output: str, sharding: str) -> None:
    be_rank(rank, size, port)
    pretrain(config(data, steps=4, eval_every=3, eval_images=19, sharding=sharding), Path(output))


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_ranks_find_what_one_process_finds(data: str, tmp_path: Path, sharding: str) -> None:
    """19 images over two ranks; the log is written once."""
    pretrain(config(data, steps=4, eval_every=3, eval_images=19), tmp_path / "one")
    codes = exit_codes(_run, 2, data, str(tmp_path / "two"), sharding)
    assert codes == [0, 0]
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [record["step"] for record in two] == [0, 1, 2, 3]
    names = [name for name in one[2] if name in FOUND or name.startswith("regions")]
    for mine, other in ((one[2], two[2]), (one[3], two[3])):
        assert [mine[name] for name in names] == pytest.approx([other[name] for name in names], abs=1e-6)


def test_corrupt_images_are_left_out_and_weights_that_are_not_finite_are_an_error(
    data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(config(data, steps=1), tmp_path)
    model = CFMViT.from_pretrained(tmp_path / "model")
    evaluation = held_out(config(data, eval_every=1), model, World(torch.device("cpu")))
    assert evaluation is not None
    whole = evaluation.run()
    root = Path(data.partition(":")[2])
    image = sorted((root / "val").glob("*.jpg"))[0]
    kept = image.read_bytes()
    image.write_bytes(kept[:99])
    try:
        found = evaluation.run()
    finally:
        image.write_bytes(kept)
    assert found.keys() == whole.keys()
    assert found["image_to_text_R@10"] * 20 == pytest.approx(round(found["image_to_text_R@10"] * 20))
    assert "skipped a corrupt sample" in caplog.text
    with torch.no_grad():
        model.visual.norm.weight[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="an embedding of the held-out data is not finite"):
        evaluation.run()


def test_embeddings_in_bfloat16_are_compared_in_float32(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 would tie many of them, and ties count against the model."""
    compared = []

    def watch(name: str, real: Any) -> None:
        def compare(*arguments: Any, **options: Any) -> Any:
            compared.append((name, torch.is_autocast_enabled("cpu"), arguments[0].dtype))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, compare)

    module = sys.modules[held_out.__module__]
    watch("retrieval_recall", module.retrieval_recall)
    watch("topk_accuracy", module.topk_accuracy)
    tokenizer = Tokenizer.train(open_captions(data, image_size=64).texts(), 400)
    model = create_model("cfm_vit_tiny", tokenizer=tokenizer, **TINY)
    settings = config(data, eval_every=1, loop=LoopConfig(steps=1, precision="bf16"))
    evaluation = held_out(settings, model, World(torch.device("cpu")))
    assert evaluation is not None and evaluation.run().keys() >= FOUND
    assert compared == [(name, False, torch.float32) for name in ("retrieval_recall", "topk_accuracy")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data={shards}"], "eval_data must be held out, got {shards}, which the run trains on"),
        (["data={scenes}"], "{scenes} must have an image with a caption, got none"),
        (["data={data}", "eval_every=0"], "eval_every must be positive, got 0"),
        (["data={data}", "device_tflops=-1"], "device_tflops must be positive, got -1"),
    ],
)
def test_what_can_not_be_held_out_is_refused(
    arguments: list[str],
    message: str,
    data: str,
    scenes: str,
    shared_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"data": data, "scenes": scenes, "shards": f"shards:{shared_data}/photos-200/train-000.tar"}
    options = ["model=cfm_vit_tiny", "vocab_size=400", "batch_size=8", "loop.steps=1", "eval_every=1"]
    words = [*options, *(argument.format(**places) for argument in arguments)]
    assert main(["pretrain", *words, "--output", str(tmp_path / "run")]) == 2
    assert message.format(**places) in capsys.readouterr().err


def test_held_out_data_come_with_their_interval() -> None:
    with pytest.raises(ValueError, match=r"eval_data must come with eval_every, got 'shards:val'"):
        PretrainConfig(eval_data="shards:val")
