"""open_clip's and OpenAI's models: random weights embed as the originals do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cfmvit.models import from_open_clip
from cfmvit.models.importing.statistics import OPENAI

from .originals import check_images, check_same, check_texts, peer, pixels, randomised, seeded, standardised

open_clip = peer("open_clip")

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "mlp_ratio": 3.3}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 24, "heads": 3, "layers": 2}
TIMM = {
    "image_size": 32,
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_pool": "token",
    "timm_proj": "linear",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "QuickGELU": {"quick_gelu": True},
    "no pre-norm, mean, LN after it": {
        "vision": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    },
    "mean, LN before it": {"vision": {"pool_type": "avg"}},
    "class token, LN after": {"vision": {"final_ln_after_pool": True}},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.2}},
    "eps and tanh-GELU": {
        "vision": {"norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}},
        "text": {"norm_kwargs": {"eps": 1e-2}},
    },
    "sin-cos positions": {"vision": {"pos_embed_type": "sin_cos_2d"}},
    "SigLIP's text": {
        "custom_text": True,
        "text": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "eos": {"text": {"pool_type": "eos", "eos_id": 5}},
    "first, without projection": {
        "custom_text": True,
        "text": {"pool_type": "first", "proj_type": "none", "width": 16, "heads": 2, "no_causal_mask": True},
    },
}


def config(**changes: Any) -> dict[str, Any]:
    vision, text = ({**VISION, **changes.pop("vision", {})}, {**TEXT, **changes.pop("text", {})})
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **changes}


def original(settings: dict[str, Any]) -> Any:
    settings = json.loads(json.dumps(settings))
    kind = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    with seeded():
        return randomised(kind(**settings))


def ids() -> Tensor:
    drawn = torch.randint(6, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((5, 8, 12)):
        drawn[row, length - 1 :] = 0
        drawn[row, length - 1] = 63
    drawn[0, 2] = drawn[1, 4] = drawn[2, 7] = 5
    return drawn


def at_size(theirs: Any, settings: dict[str, Any], size: int) -> Any:
    """Return their model for another size, its weights brought there by their own loader."""
    settings = json.loads(json.dumps(settings))
    settings["vision_cfg"]["image_size"] = size
    other = original(settings)
    state = dict(theirs.state_dict())
    open_clip.model.resize_pos_embed(state, other)
    other.load_state_dict(state)
    return other.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeds_as_the_original(variant: str, tmp_path: Path) -> None:
    settings = config(**json.loads(json.dumps(VARIANTS[variant])))
    theirs = original(settings)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    model = from_open_clip(tmp_path / "weights.pt", settings)
    check_texts(model, theirs.encode_text, ids())
    for size in (32, 48):
        other = theirs if size == 32 else at_size(theirs, settings, size)
        check_images(
            model, lambda x, m=other: m.encode_image(standardised(x, OPENAI.mean, OPENAI.std)), pixels(size)
        )
    check_same(from_open_clip(theirs), model, ids())
    saved = torch.load(tmp_path / "weights.pt")
    assert all(torch.equal(saved[name], weight) for name, weight in theirs.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
def test_checkpoints_of_any_wrapping(prefix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """As compiled and distributed runs write them; of an average and the last weights the average, as timm does."""
    weights = {name: weight.to(dtype) for name, weight in original(config()).state_dict().items()}
    run = {
        "state_dict": {f"{prefix}{name}": torch.zeros_like(weight) for name, weight in weights.items()},
        "state_dict_ema": {f"{prefix}{name}": weight for name, weight in weights.items()},
    }
    torch.save(run, tmp_path / "run.pt")
    model = from_open_clip(tmp_path / "run.pt", config())
    assert torch.equal(model.image_head.proj.weight, weights["visual.proj"].float().T)


def test_named_models_have_their_statistics_and_any_temperature(tmp_path: Path) -> None:
    from cfmvit.models.importing.open_clip import _preprocessing

    assert _preprocessing(open_clip, "ViT-B-16-SigLIP") == {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert _preprocessing(open_clip, "no such model") == {}
    weights = original(config()).state_dict()
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    torch.save(
        {"state_dict": {f"module.{name}": weight for name, weight in weights.items()}}, tmp_path / "run.pt"
    )
    model = from_open_clip(tmp_path / "run.pt", config(), attention="sdpa")
    assert model.logit_scale == weights["logit_scale"] and model.config.attention == "sdpa"


def test_a_large_vocabulary_is_no_clips() -> None:
    """A model at hand that has another tokenizer, of which it says nothing, is given none."""
    settings = config(text_cfg={**config()["text_cfg"], "vocab_size": 60_000})
    assert from_open_clip(original(settings)).tokenizer is None
