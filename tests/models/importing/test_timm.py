"""timm's plain vision transformers, alone and as open_clip's towers: random weights embed as the originals do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cfmvit.models import from_open_clip, from_timm
from cfmvit.models.importing.statistics import IMAGENET

from .originals import check_images, check_texts, peer, pixels, randomised, seeded, standardised
from .test_open_clip import TEXT, ids

timm = peer("timm")
open_clip = peer("open_clip")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean, LN after it": {"global_pool": "avg"},
    "mean, LN before it": {"global_pool": "avg", "fc_norm": False, "class_token": False},
    "SigLIP": {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh", "mlp_ratio": 3.7},
    "CLIP": {"pre_norm": True, "norm_layer": torch.nn.LayerNorm, "act_layer": "quick_gelu"},
    "position-free class token, scaled": {"no_embed_class": True, "init_values": 0.2, "qkv_bias": False},
    "no pooling": {"global_pool": ""},
}


def original(**options: Any) -> Any:
    with seeded():
        return randomised(timm.models.vision_transformer.VisionTransformer(**{**SMALL, **options}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeds_as_the_original(variant: str) -> None:
    options = VARIANTS[variant]
    model = from_timm(original(**options))
    for size in ((32, 32), (48, 48), (24, 40)):
        theirs = original(**options)
        theirs.set_input_size(size)

        def embed(x: torch.Tensor, theirs: Any = theirs) -> torch.Tensor:
            tokens = theirs.forward_features(standardised(x, IMAGENET.mean, IMAGENET.std))
            found = theirs.forward_head(tokens, pre_logits=True)
            return found[:, 0] if variant == "no pooling" else found

        check_images(model, embed, pixels(*size))
    with pytest.raises(ValueError, match=r"encode_text: timm:VisionTransformer has no text tower"):
        model.encode_text(["a cup"])


def test_a_folder_of_the_hub_and_a_file(tmp_path: Path) -> None:
    name, changes = "vit_tiny_patch16_224", {"img_size": 32, "depth": 1}
    with seeded():
        theirs = randomised(timm.create_model(name, num_classes=3, **changes))
    safetensors = peer("safetensors.torch")
    safetensors.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    statistics = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    config = {"architecture": name, "num_classes": 3, "model_args": changes, "pretrained_cfg": statistics}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_images(
        from_timm(tmp_path),
        lambda x: theirs.forward_head(
            theirs.forward_features(standardised(x, *statistics.values())), pre_logits=True
        ),
        pixels(32),
    )
    with pytest.raises(
        ValueError, match=r"say(s)? nothing of its architecture: give the model's name as timm"
    ):
        from_timm(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.norm1\.weight"):
        from_timm(tmp_path / "model.safetensors", name)


def test_siglip_of_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its towers are timm's, with attention pooling, and a bidirectional text transformer."""
    options = {k: v for k, v in SMALL.items() if k != "num_classes"} | VARIANTS["SigLIP"]
    make = timm.create_model

    def small(name: str, **arguments: Any) -> Any:
        return (
            make(name, **{**options, **arguments})
            if name == "vit_base_patch16_siglip_224"
            else make(name, **arguments)
        )

    monkeypatch.setattr(timm, "create_model", small)
    tower = {
        "image_size": 32,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
    }
    text = {
        **TEXT,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
        "norm_kwargs": {"eps": 1e-6},
    }
    with seeded():
        theirs = randomised(open_clip.CustomTextCLIP(32, tower, text, init_logit_bias=-10))
    half = (0.5, 0.5, 0.5)
    model = from_open_clip(theirs, mean=half, std=half)
    check_texts(model, theirs.encode_text, ids())
    check_images(model, lambda x: theirs.encode_image(standardised(x, half, half)), pixels(32))
