"""Hugging Face's CLIPModel and SiglipModel: random weights embed as the originals do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cfmvit.models import from_hf
from cfmvit.models.importing.statistics import HALF, OPENAI, Statistics

from .originals import check_images, check_same, check_texts, peer, pixels, randomised, seeded, standardised

transformers = peer("transformers")

VISION = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": 64,
    "max_position_embeddings": 12,
    "eos_token_id": 63,
}
STATISTICS = {"clip": OPENAI, "siglip": HALF}


def original(kind: str, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    if kind == "clip":
        config = transformers.CLIPConfig(
            vision_config={**VISION, **(vision or {})},
            text_config={**TEXT, **(text or {})},
            projection_dim=16,
        )
        model = transformers.CLIPModel
    else:
        config = transformers.SiglipConfig(
            vision_config={**VISION, **(vision or {})},
            text_config={**TEXT, "projection_size": 32, **(text or {})},
        )
        model = transformers.SiglipModel
        config.text_config.bos_token_id = None
    with seeded():
        return randomised(model(config))


def images_of(theirs: Any, statistics: Statistics) -> Any:
    def embed(images: Tensor) -> Tensor:
        found = theirs.get_image_features(
            standardised(images, statistics.mean, statistics.std), interpolate_pos_encoding=True
        )
        return getattr(found, "pooler_output", found)

    return embed


def texts_of(theirs: Any) -> Any:
    def embed(ids: Tensor) -> Tensor:
        found = theirs.get_text_features(ids)
        return getattr(found, "pooler_output", found)

    return embed


def ids() -> Tensor:
    drawn = torch.randint(6, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((5, 8, 12)):
        drawn[row, length - 1 :] = 63
    return drawn


VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "clip": ("clip", {}, {}),
    "clip, old end of text": ("clip", {}, {"eos_token_id": 2}),
    "clip, GELU and eps": (
        "clip",
        {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
        {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-2},
    ),
    "siglip": ("siglip", {}, {}),
    "siglip, pixels over": ("siglip", {"image_size": 35}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeds_as_the_original(variant: str, tmp_path: Path) -> None:
    kind, vision, text = VARIANTS[variant]
    theirs = original(kind, vision, text)
    theirs.save_pretrained(tmp_path)
    model = from_hf(tmp_path)
    check_texts(model, texts_of(theirs), ids())
    for size in ((32, 32), (48, 48), (24, 40)):
        check_images(model, images_of(theirs, STATISTICS[kind]), pixels(*size))
    check_same(from_hf(theirs), model, ids())


@pytest.mark.parametrize("form", ["safetensors", "parts", "pickle", "pickled parts", "compiled"])
def test_a_folder_of_any_form(form: str, tmp_path: Path) -> None:
    """As transformers writes and has written them, and of a model that torch.compile had."""
    theirs = original("clip")
    theirs.save_pretrained(tmp_path)
    weights = theirs.state_dict()
    if form != "safetensors":
        (tmp_path / "model.safetensors").unlink()
    half = dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])
    save = peer("safetensors.torch").save_file
    if form == "parts":
        write_parts(tmp_path / "model.safetensors.index.json", half, "model-{}.safetensors", save)
    elif form == "pickled parts":
        write_parts(tmp_path / "pytorch_model.bin.index.json", half, "pytorch_model-{}.bin", torch.save)
    elif form == "pickle":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif form == "compiled":
        torch.save(
            {f"_orig_mod.{name}": value for name, value in weights.items()}, tmp_path / "pytorch_model.bin"
        )
    check_same(from_hf(theirs), from_hf(tmp_path), ids())


def write_parts(
    index: Path, parts: Sequence[dict[str, Tensor]], name: str, save: Callable[..., None]
) -> None:
    places = {}
    for number, part in enumerate(parts):
        file = name.format(number)
        save({key: value.contiguous() for key, value in part.items()}, index.with_name(file))
        places |= dict.fromkeys(part, file)
    index.write_text(json.dumps({"weight_map": places}))


def test_parts_lie_beside_their_index(tmp_path: Path) -> None:
    original("clip").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"logit_scale": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match=r"index\.json must name files beside it, got \.\./elsewhere"):
        from_hf(tmp_path / "model")


def test_a_named_tokenizer_is_treated_as_the_folders_own(tmp_path: Path) -> None:
    """SigLIP's labels lose their capitals, and its padding has the id that its files say."""
    library = peer("tokenizers")
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "a": 3, "red": 4, "cup": 5}
    backend = library.Tokenizer(library.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = library.pre_tokenizers.Whitespace()
    original("siglip").save_pretrained(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "GemmaTokenizer", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    own = from_hf(tmp_path)
    assert own.config.text_pad_id == 0
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        named = from_hf(tmp_path, tokenizer=place)
        assert named.config == own.config
        assert torch.equal(named.tokenize(["A RED cup"]), own.tokenize(["a red cup"]))
