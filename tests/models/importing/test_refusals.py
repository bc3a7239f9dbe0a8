"""What can't be imported is named: architectures, keys and shapes, files, and checkpoints passed where ours are expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cfmvit.cli import main
from cfmvit.detection import Detector
from cfmvit.models import CFMViT, from_hf, from_mae, from_open_clip, from_timm, import_model

from . import test_hf, test_open_clip
from .originals import peer

open_clip, timm, transformers = peer("open_clip"), peer("timm"), peer("transformers")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN50", "ModifiedResNet is not supported: it is convolutional"),
        ("EVA02-B-16", r"timm's Eva is not supported: it has rotary positions, and a gated MLP \(SwiGLU\)"),
        ("convnext_base", "timm's ConvNeXt is not supported: it is convolutional"),
        ("swin_base_patch4_window7_224", "timm's SwinTransformer is not supported"),
        ("coca_ViT-B-32", "CoCa is not supported"),
        ("roberta-ViT-B-32", "the text tower roberta-base is not supported"),
        ("ViT-B-61", r"model must be one of open_clip\.list_models\(\).* got 'ViT-B-61'"),
    ],
)
def test_open_clips_other_architectures(name: str, message: str, tmp_path: Path) -> None:
    torch.save({"logit_scale": torch.zeros(())}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        from_open_clip(tmp_path / "weights.pt", name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, "reg_tokens is not supported: there are register tokens"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "with q_norm, k_norm is not supported"),
        (
            "vit_tiny_patch16_224",
            {"mlp_layer": timm.layers.SwiGLUPacked},
            "MLP must be two layers without a gate",
        ),
        ("vit_tiny_patch16_224", {"global_pool": "max"}, "pooling must be avg, token or map"),
        ("deit_tiny_distilled_patch16_224", {}, "it has a second class token"),
        ("resnet18", {}, "ResNet is not supported: it is convolutional"),
    ],
)
def test_timms_other_architectures(name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    with pytest.raises(ValueError, match=message):
        from_timm(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip2"}, r"of the type 'siglip2' is not supported: its images are .* \(NaFlex\)"),
        ({"model_type": "dinov2"}, "of the type 'dinov2' is not supported: only clip and siglip are"),
        ({"model_type": None}, "of the type None is not supported"),
        ({"vision_config": {"hidden_act": "silu"}}, "the activation 'silu' is not supported"),
        ({"vision_config": {"num_channels": 4}}, "an image of 4 channels is not supported"),
        ({"vision_config": {"image_size": [32, 48]}}, r"image_size \[32, 48\] is not supported: .* squares"),
    ],
)
def test_hugging_faces_other_architectures(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    test_hf.original("clip").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        from_hf(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual.ln_post.bias"), r"missing: visual\.ln_post\.bias \(32,\)"),
        (lambda w: w.update({"visual.ln_q.weight": torch.ones(2)}), r"unknown: visual\.ln_q\.weight"),
        (
            lambda w: w.update({"ln_final.weight": torch.ones(7)}),
            r"of another shape or type: text\.ln_final\.weight must have the shape \(24,\), got \(7,\)",
        ),
        (
            lambda w: w.update({"visual.proj": w["visual.proj"].to(torch.int8)}),
            r"visual\.proj must be floating-point, got torch\.int8",
        ),
        (lambda w: w["visual.conv1.weight"].fill_(torch.nan), r"NaN or infinite: visual\.conv1\.weight"),
        (
            lambda w: [w.pop(k) for k in list(w) if "resblocks.1" in k],
            r"missing: visual\.transformer.* and \d+ more",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str, tmp_path: Path) -> None:
    weights = test_open_clip.original(test_open_clip.config()).state_dict()
    change(weights)
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=rf"weights\.pt does not fit its architecture; .*{message}"):
        from_open_clip(tmp_path / "weights.pt", test_open_clip.config())


def test_openais_resnets(tmp_path: Path) -> None:
    weights = {"visual.layer1.0.conv1.weight": torch.zeros(1), "input_resolution": torch.tensor(224)}
    torch.save(weights, tmp_path / "RN50.pt")
    with pytest.raises(ValueError, match="ModifiedResNet is not supported: it is convolutional"):
        from_open_clip(tmp_path / "RN50.pt")


def test_openais_archives_have_their_own_activation(tmp_path: Path) -> None:
    torch.save({"input_resolution": torch.tensor(224)}, tmp_path / "ViT-B-16.pt")
    with pytest.raises(ValueError, match=r"activations are QuickGELU: give no model, got ViT-B-16"):
        from_open_clip(tmp_path / "ViT-B-16.pt", "ViT-B-16")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.pt", tmp_path / "empty.pth"
    broken.write_bytes(b"nothing")
    torch.save({"epoch": 3}, empty)
    with pytest.raises(ValueError, match=r"broken\.pt can't be read"):
        from_open_clip(broken, "ViT-B-32")
    torch.save({"state_dict": test_open_clip.original(test_open_clip.config())}, tmp_path / "module.pt")
    with pytest.raises(
        ValueError, match=r"module\.pt can't be read: it is damaged, or holds more than the tensors"
    ) as of:
        from_open_clip(tmp_path / "module.pt", "ViT-B-32")
    assert "weights_only" not in str(of.value)
    with pytest.raises(
        ValueError, match=r"empty\.pth must hold a state dict, got a mapping without tensors, of epoch"
    ):
        from_mae(empty)
    with pytest.raises(FileNotFoundError, match="no file at"):
        from_mae(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"must hold config\.json"):
        from_hf(tmp_path)
    torch.save(test_open_clip.original(test_open_clip.config()).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(
        ValueError, match=r"says nothing of its architecture: give the model's name .*--model ViT-B-16"
    ):
        from_open_clip(tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"the images' std must be three positive numbers, got \[1, 2\]"):
        from_open_clip(tmp_path / "plain.pt", test_open_clip.config(), std=[1, 2])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("clip:x", r"must look like KIND:PLACE, KIND being hf, mae, open_clip, timm, got 'clip:x'"),
        ("x", "must look like KIND:PLACE"),
    ],
)
def test_places(place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_model(place)
    with pytest.raises(ValueError, match="heads is for mae, not for hf"):
        import_model("hf:x", heads=3)


def test_a_checkpoint_of_another_library_says_how_to_import_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = test_open_clip.original(test_open_clip.config())
    paths = {
        "hf": tmp_path / "hf",
        "open_clip": tmp_path / "clip.pt",
        "timm": tmp_path / "vit.pth",
        "mae": tmp_path / "mae.pth",
    }
    test_hf.original("clip").save_pretrained(paths["hf"])
    torch.save(clip.state_dict(), paths["open_clip"])
    vit = {"patch_embed.proj.weight": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}
    torch.save(vit, paths["timm"])
    torch.save({"model": {**vit, "decoder_pos_embed": torch.zeros(1)}}, paths["mae"])
    for kind, path in paths.items():
        for model in (CFMViT, Detector):
            with pytest.raises(
                ValueError, match=rf"a checkpoint of .*: cfmvit import {kind}:{path} --output DIR"
            ):
                model.from_pretrained(path)
    assert (
        main(
            ["import", f"hf:{paths['hf']}", "--output", str(tmp_path / "ours"), "--mean", "0.5", "--std", "a"]
        )
        == 2
    )
    assert "--std must be numbers parted by commas, got 'a'" in capsys.readouterr().err
    assert main(["import", f"hf:{paths['hf']}", "--output", str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("hf:clip: 32 px, patches of 8, 2 blocks of 32, joint space of 16; ")
    assert "there is no tokenizer" in printed
    assert CFMViT.from_pretrained(tmp_path / "ours").config.class_token
    with pytest.raises(ValueError, match="is a CFM-ViT already"):
        from_hf(tmp_path / "ours")
