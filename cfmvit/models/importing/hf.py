"""Hugging Face's ``CLIPModel`` and ``SiglipModel``: folders that ``save_pretrained`` wrote, or models at hand."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfmvit.models.cfm_vit import CFMViT
from cfmvit.models.hub import local_folder
from cfmvit.models.importing.build import ACTIVATIONS, build, refuse, side, split_positions
from cfmvit.models.importing.files import find_weights, read_config, read_tensors
from cfmvit.models.importing.parts import BlockNames, Weights, take_blocks, take_pair, take_query_pool
from cfmvit.models.importing.source import Source
from cfmvit.models.importing.statistics import HALF, OPENAI, Statistics
from cfmvit.models.importing.tokenizers import given_tokenizer, hf_tokenizer
from cfmvit.models.tokenizer import Tokenizer

_BLOCK = BlockNames(
    norms=("layer_norm1", "layer_norm2"),
    qkv=("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    proj="self_attn.out_proj",
    mlp=("mlp.fc1", "mlp.fc2"),
)
# What a config.json leaves out: the defaults of transformers.
_CLIP: dict[str, dict[str, Any]] = {
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}
_SIGLIP: dict[str, dict[str, Any]] = {
    "text_config": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "projection_size": None,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
}
_WHY = {
    "siglip2": "its images are sequences of patches of any shape (NaFlex); the SigLIP 2 models of one size are of the type siglip",
    "clipseg": "it is no CLIPModel",
}


def from_hf(
    source: Any,
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    mean: Any = None,
    std: Any = None,
    **options: Any,
) -> CFMViT:
    """Make a CFM-ViT of Hugging Face's ``CLIPModel`` or ``SiglipModel``; it embeds as the original does.

    Args:
        source: a folder with ``config.json`` and the weights; ``"hf:org/name"`` from the hub; or a model at hand.
        tokenizer: a ``Tokenizer``, or the path of one (see ``given_tokenizer``); by default the one in the folder, where there
            is one.
        mean, std: image statistics; by default those of the folder's ``preprocessor_config.json``, else those of the kind.
        options: fields of ``ModelConfig``, such as ``attention``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another kind of model, or weights that do not fit ``config.json``.
    """
    if isinstance(source, (str, os.PathLike)):
        folder = local_folder(source)
        config = read_config(folder / "config.json")
        weights = find_weights(folder, "model", "pytorch_model")
        tensors, origin = read_tensors(weights), str(weights)
    else:
        folder, config = None, source.config.to_dict()
        tensors, origin = source.state_dict(), f"a {type(source).__name__}"
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        if {"name", "context_length"} <= config.keys():
            raise ValueError(f"import: {origin} is a CFM-ViT already; CFMViT.from_pretrained reads it")
        refuse(f"a Hugging Face model of the type {kind!r}", _WHY.get(str(kind), "only clip and siglip are"))
    clip = kind == "clip"
    text, vision = (
        _sub_config(config, part, (_CLIP if clip else _SIGLIP)[part])
        for part in ("text_config", "vision_config")
    )
    reader = Source(tensors, origin)
    found, pad_id = given_tokenizer(tokenizer, siglip=not clip)
    if found is None and folder is not None:
        found, pad_id = hf_tokenizer(folder, siglip=not clip)
    if pad_id is None:
        pad_id = 0 if clip else text.get("pad_token_id", 1)
    statistics = _statistics(folder, OPENAI if clip else HALF, mean, std)
    converted, own = _clip(reader, config, text, vision) if clip else _siglip(reader, text, vision)
    converted |= _patches(reader, vision, statistics, biased=not clip)
    named = {"name": f"hf:{kind}", "text_pad_id": pad_id, **_towers(text, vision), **own, **options}
    return build(reader, named, converted, found)


def _sub_config(config: Mapping[str, Any], part: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    # Of old files, which have both, transformers takes the second.
    return {**defaults, **(config.get(part) or {}), **(config.get(f"{part}_dict") or {})}


def _towers(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that both kinds have."""
    if vision["num_channels"] != 3:
        refuse(f"an image of {vision['num_channels']} channels", "images have three")
    patch = side(vision["patch_size"], "patch_size")
    options: dict[str, Any] = {
        "patch_size": patch,
        # Pixels that no whole patch covers are not looked at.
        "image_size": side(vision["image_size"], "image_size") // patch * patch,
        "pos_resize": "bicubic",
        "vocab_size": text["vocab_size"],
        "context_length": text["max_position_embeddings"],
    }
    for prefix, tower in (("", vision), ("text_", text)):
        activation = tower["hidden_act"]
        if activation not in ACTIVATIONS:
            refuse(f"the activation {activation!r}", f"known are {', '.join(ACTIVATIONS)}")
        options |= {
            f"{prefix}width": tower["hidden_size"],
            f"{prefix}depth": tower["num_hidden_layers"],
            f"{prefix}heads": tower["num_attention_heads"],
            f"{prefix}mlp_width": tower["intermediate_size"],
            f"{prefix}activation": ACTIVATIONS[activation],
            f"{prefix}norm_eps": tower["layer_norm_eps"],
        }
    return options


def _clip(
    source: Source, config: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]
) -> tuple[Weights, dict[str, Any]]:
    joint, width, text_width = config.get("projection_dim", 512), vision["hidden_size"], text["hidden_size"]
    source.drop(r"(text|vision)_model\.embeddings\.position_ids")
    weights = _blocks(source, vision, "vision_model", "visual") | _blocks(source, text, "text_model", "text")
    # The first of these names is spelt so in every file.
    weights |= take_pair(source, "vision_model.pre_layrnorm", "visual.norm_pre", width)
    weights |= take_pair(source, "vision_model.post_layernorm", "visual.norm", width)
    weights |= _text_ends(source, text)
    weights["image_head.proj.weight"] = source.take("visual_projection.weight", joint, width)
    weights["text.proj.weight"] = source.take("text_projection.weight", joint, text_width)
    weights["logit_scale"] = source.take("logit_scale")
    tokens = 1 + (side(vision["image_size"], "image_size") // side(vision["patch_size"], "patch_size")) ** 2
    positions = source.take("vision_model.embeddings.position_embedding.weight", tokens, width)
    split_positions(weights, positions, source.take("vision_model.embeddings.class_embedding", width))
    eot = text["eos_token_id"]
    if not isinstance(eot, int):
        refuse(f"eos_token_id = {eot!r}", "a text ends with one token")
    return weights, {
        "embed_dim": joint,
        "class_token": True,
        "pre_norm": True,
        "pooling": "class",
        "text_causal": True,
        # Files that say 2 are older than that entry's use; transformers keeps what was done then.
        "text_pooling": "argmax" if eot == 2 else "eot",
        "text_eot_id": eot,
    }


def _siglip(
    source: Source, text: Mapping[str, Any], vision: Mapping[str, Any]
) -> tuple[Weights, dict[str, Any]]:
    if not vision["vision_use_head"]:
        refuse("a SiglipModel without its pooling head", "its images have no embedding")
    width, hidden, text_width = vision["hidden_size"], vision["intermediate_size"], text["hidden_size"]
    joint = text["projection_size"] or text_width
    if joint != width:
        refuse(f"a text projection to {joint}", f"images are embedded in {width}")
    # A softmax over labels is the same with and without the bias of SigLIP's sigmoid.
    source.drop(r"logit_bias|(text|vision)_model\.embeddings\.position_ids")
    weights = _blocks(source, vision, "vision_model", "visual") | _blocks(source, text, "text_model", "text")
    weights |= take_pair(source, "vision_model.post_layernorm", "visual.norm", width)
    weights |= _text_ends(source, text)
    weights |= take_pair(source, "text_model.head", "text.proj", joint, text_width)
    weights["logit_scale"] = source.take("logit_scale", 1).reshape(())
    tokens = (side(vision["image_size"], "image_size") // side(vision["patch_size"], "patch_size")) ** 2
    positions = source.take("vision_model.embeddings.position_embedding.weight", tokens, width)
    split_positions(weights, positions, None)
    head, pool = "vision_model.head", "image_head.attn_pool"
    weights |= take_query_pool(
        source.take(f"{head}.probe", 1, 1, width).flatten(),
        source.take(f"{head}.attention.in_proj_weight", 3 * width, width),
        source.take(f"{head}.attention.in_proj_bias", 3 * width),
        width,
    )
    weights |= take_pair(source, f"{head}.attention.out_proj", f"{pool}.proj", width, width)
    weights |= take_pair(source, f"{head}.layernorm", f"{pool}.norm", width)
    weights |= take_pair(source, f"{head}.mlp.fc1", f"{pool}.mlp.fc1", hidden, width)
    weights |= take_pair(source, f"{head}.mlp.fc2", f"{pool}.mlp.fc2", width, hidden)
    return weights, {"pooling": "attention", "text_pooling": "last", "text_projection_bias": True}


def _blocks(source: Source, tower: Mapping[str, Any], theirs: str, ours: str) -> Weights:
    return take_blocks(
        source,
        f"{theirs}.encoder.layers.",
        f"{ours}.blocks.",
        _BLOCK,
        depth=tower["num_hidden_layers"],
        width=tower["hidden_size"],
        mlp_width=tower["intermediate_size"],
    )


def _text_ends(source: Source, text: Mapping[str, Any]) -> Weights:
    width, theirs = text["hidden_size"], "text_model.embeddings"
    vocabulary, length = text["vocab_size"], text["max_position_embeddings"]
    return {
        "text.token_embed.weight": source.take(f"{theirs}.token_embedding.weight", vocabulary, width),
        "text.pos_embed": source.take(f"{theirs}.position_embedding.weight", length, width),
        **take_pair(source, "text_model.final_layer_norm", "text.norm", width),
    }


def _patches(source: Source, vision: Mapping[str, Any], statistics: Statistics, *, biased: bool) -> Weights:
    width, patch = vision["hidden_size"], side(vision["patch_size"], "patch_size")
    name = "vision_model.embeddings.patch_embedding"
    weight = source.take(f"{name}.weight", width, 3, patch, patch)
    bias = source.take(f"{name}.bias", width) if biased else None
    weight, bias = statistics.fold(weight, bias)
    return {"visual.patch_embed.proj.weight": weight, "visual.patch_embed.proj.bias": bias}


def _statistics(folder: Path | None, usual: Statistics, mean: Any, std: Any) -> Statistics:
    config: dict[str, Any] = {}
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        config = read_config(folder / "preprocessor_config.json")
    elif folder is not None and (folder / "processor_config.json").is_file():
        config = read_config(folder / "processor_config.json").get("image_processor") or {}
    if config.get("do_normalize") is False:
        config = {**config, "image_mean": 0.0, "image_std": 1.0}
    factor = 1.0 if config.get("do_rescale") is False else config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise ValueError(f"import: rescale_factor in {folder} must be a positive number, got {factor!r}")
    statistics = Statistics.of(
        config.get("image_mean", usual.mean) if mean is None else mean,
        config.get("image_std", usual.std) if std is None else std,
    )
    theirs = statistics.of_pixels_times(255 * factor)
    return Statistics(
        theirs.mean if mean is None else statistics.mean, theirs.std if std is None else statistics.std
    )
