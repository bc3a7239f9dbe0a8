"""Pretraining end to end on scenes and on real files: it learns, resumes bit for bit, and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cfmvit.cli import main
from cfmvit.models import CFMViT
from cfmvit.pretrain import OptimConfig, pretrain
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.training import LoopConfig, NonFiniteLossError
from cfmvit.training.checkpoint import checkpoints, last_whole
from cfmvit.training.checkpoint_folder import read_state, write_state

from .small_run import TINY, config, weights


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_an_interrupted_run_resumes_bit_for_bit(
    scenes: str, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = LoopConfig(steps=6, log_every=1, save_every=3, accumulate=2, precision=precision)
    pretrain(config(scenes, loop=loop), tmp_path / "whole")

    class Stop(Exception):
        pass

    real, calls = ContrastiveGradients.__call__, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise Stop
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveGradients, "__call__", stopping)
        with pytest.raises(Stop):
            pretrain(config(scenes, loop=loop), tmp_path / "broken")
    pretrain(config(scenes, loop=loop), tmp_path / "broken", resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_losses_fall(scenes: str, tmp_path: Path) -> None:
    pretrain(config(scenes, steps=40, save_every=40), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["reconstruction"] < 0.5 * records[0]["reconstruction"]
    assert sum(r["contrastive"] for r in records[-5:]) < sum(r["contrastive"] for r in records[:5])
    assert {p.name for p in tmp_path.iterdir()} >= {
        "config.json",
        "tokenizer.json",
        "checkpoints",
        "model",
        "tensorboard",
    }


def test_a_poisoned_weight_stops_the_run_and_keeps_the_last_good_checkpoint(
    scenes: str, tmp_path: Path
) -> None:
    pretrain(config(scenes, steps=3), tmp_path)
    path = last_whole(tmp_path)
    state = read_state(path)
    state.model["visual.norm.weight"][0] = torch.nan
    write_state(path, state)
    poisoned = contents(tmp_path / "checkpoints")
    with pytest.raises(NonFiniteLossError, match=r"step 3: .*batch keys: \['.*\.jpg'"):
        pretrain(config(scenes), tmp_path, resume=True)
    assert contents(tmp_path / "checkpoints") == poisoned


def test_the_command_pretrains_on_real_captions(shared_data: Path, tmp_path: Path) -> None:
    options = [f"model_options.{key}={value}" for key, value in TINY.items()]
    command = [
        "pretrain",
        f"data=coco:{shared_data / 'coco-tiny'}",
        "model=cfm_vit_tiny",
        *options,
        "batch_size=4",
    ]
    command += ["loop.steps=2", "optim.warmup=1", "device=cpu", "--output", str(tmp_path)]
    assert main(command) == 0
    assert CFMViT.from_pretrained(tmp_path / "model").encode_text(["a dog"]).shape == (1, 32)


def test_the_command_pretrains_on_shards(shared_data: Path, tmp_path: Path) -> None:
    options = [f"model_options.{key}={value}" for key, value in TINY.items()]
    shards = shared_data / "photos-200" / "train-{000..001}.tar"
    command = ["pretrain", f"data=shards:{shards}", "model=cfm_vit_tiny", *options, "batch_size=4"]
    assert main([*command, "loop.steps=2", "optim.warmup=1", "device=cpu", "--output", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data must be given"),
        (["data=coco:nowhere"], "nowhere must hold annotations/captions_train2017.json"),
        (["data=elsewhere"], "it must look like coco:DIR"),
        (["data=coco:x", "optim.rate=3"], "unknown key optim.rate; valid keys: optim.lr"),
        (["data=coco:x", "device=cuda:0"], "torch sees no CUDA GPU here"),
        (["--resume", "data={scenes}", "device=cpu"], "no checkpoint at"),
        (["data=coco:x", "device=meta"], "device must be auto, cpu or cuda"),
        (["data=coco:x", "loop.steps=Infinity"], "loop.steps must be int, got inf"),
        (["data=coco:x", "optim.lr=NaN"], "optim.lr must be float, got nan"),
        (["data=coco:x", "optim.lr=-1"], "optim.lr must be positive, got -1.0"),
        (["data=coco:x", "optim.warmup=-5"], "optim.warmup must be at least 0, got -5"),
        (["data=coco:x", "optim.beta1=2"], "optim.beta1 must be at least 0 and below 1"),
        (["data=coco:x", "loop.clip_grad=-1"], "loop.clip_grad must be positive"),
        (["data=coco:x", "loop.seed=-1"], "loop.seed must be at least 0"),
        (["data=coco:x", "batch_size=0"], "batch_size must be positive, got 0"),
        (["data=coco:x", "workers=-1"], "workers must be at least 0, got -1"),
        (["data={scenes}", "model_options.depth=abc"], "depth must be an integer of at least 1, got 'abc'"),
        (["data={scenes}", "model_options.depth=true"], "depth must be an integer of at least 1, got True"),
        (["data={scenes}", "model_options.ped_prob=true"], "ped_prob must be a finite number, got True"),
        (["data={scenes}", "model_options.logit_scale_max=Infinity"], "must be a finite number, got inf"),
        (["data={scenes}", "model_options.image_size=60"], "image_size must be a multiple of patch_size"),
        (["data={scenes}", "model_options.image_size=abc"], "image_size must be an integer of at least 1"),
        (["data={scenes}", "model_options.foo=1"], "unknown option 'foo'"),
        (["data=coco:x", "loop.seed=9223372036854775808"], "loop.seed must be below 2**63"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], message: str, scenes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "device=cuda:0" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = [argument.format(scenes=scenes) for argument in arguments]
    small = ["model=cfm_vit_tiny", "vocab_size=400", "loop.steps=1", "batch_size=8"]
    assert main(["pretrain", *small, *arguments, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_new_run_never_resumes_an_old_one(scenes: str, tmp_path: Path) -> None:
    pretrain(config(scenes, steps=3), tmp_path)
    step = "cfmvit.pretrain.engine.ContrastiveGradients.__call__"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pretrain(config(scenes, loop=LoopConfig(steps=3, seed=7)), tmp_path, overwrite=True)
    assert (tmp_path / "checkpoints.previous").exists(), "until the new run has one of its own"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        pretrain(config(scenes, loop=LoopConfig(steps=3, seed=7)), tmp_path, resume=True)


def test_a_resumed_run_keeps_its_configuration(
    scenes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(config(scenes, steps=3), tmp_path)
    kept = (tmp_path / "config.json").read_bytes()
    command = ["pretrain", "--resume", "--output", str(tmp_path)]
    assert main([*command, "optim.lr=0.9"]) == 2
    assert (
        f"resume: optim.lr must stay 0.002 as in {tmp_path / 'config.json'}, got 0.9"
        in capsys.readouterr().err
    )
    assert main([*command, "model_options.depth=2"]) == 2
    assert main([*command, "data=lvis:elsewhere"]) == 2
    weights_file = last_whole(tmp_path) / "model.safetensors"
    good = weights_file.read_bytes()
    weights_file.write_bytes(b"damaged")
    assert main([*command, "loop.steps=5"]) == 2
    weights_file.write_bytes(good)
    assert main([*command, "loop.steps=2"]) == 2
    assert "loop.steps must be at least the 3 steps that are done, got 2" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_bytes() == kept
    assert main([*command, "loop.steps=5"]) == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    assert all(record["images_per_s"] > 0 for record in records)


def test_a_run_is_overwritten_only_on_demand(
    scenes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(config(scenes, steps=2), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(
        FileExistsError, match=r"already holds a run \(checkpoints and model\); --resume goes on"
    ):
        pretrain(config(scenes, steps=2), tmp_path)
    assert contents(tmp_path) == before
    pretrain(config(scenes, steps=3), tmp_path, overwrite=True)
    assert not (tmp_path / "checkpoints.previous").exists()
    assert [path.name for path in checkpoints(tmp_path)] == ["00000003"]
    assert f"the model is in {tmp_path / 'model'}" in capsys.readouterr().out


def test_other_data_are_noticed(tmp_path: Path, shared_data: Path) -> None:
    shards = [shared_data / "photos-200" / f"train-00{number}.tar" for number in range(2)]
    pretrain(config(f"shards:{shards[0]}", steps=1), tmp_path / "run")
    (tmp_path / "data").mkdir()
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings["data"] = f"shards:{shards[1]}"
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"resume: the data must stay as they were: \d+ samples, sha256 .*, got \d+ samples"
    ):
        pretrain(config(f"shards:{shards[1]}", steps=2), tmp_path / "run", resume=True)


def test_a_batch_has_others_to_learn_from(scenes: str, tmp_path: Path) -> None:
    for size in (1, 61):
        with pytest.raises(
            ValueError, match=f"batch_size must lie between 2 and the 60 images .*, got {size}"
        ):
            pretrain(config(scenes, batch_size=size), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_run_changes_of_its_settings_is_said(
    scenes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**TINY, "context_length": 4}
    pretrain(config(scenes, steps=20, model_options=options, optim=OptimConfig()), tmp_path)
    out = capsys.readouterr().out
    assert "optim.warmup = 10000 would not end within loop.steps = 20: it is 2" in out
    assert "captions are cut at context_length = 4 tokens" in out
    with pytest.raises(ValueError, match="vocab_size must not be given with a tokenizer"):
        config(scenes, tokenizer=str(tmp_path / "tokenizer.json"))
