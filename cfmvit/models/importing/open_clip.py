"""open_clip's models, among them OpenAI's: state dicts with the name or the configuration of their model, and models at hand."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfmvit._require import require
from cfmvit.models.cfm_vit import CFMViT
from cfmvit.models.hub import local_folder
from cfmvit.models.importing.build import build, refuse, side, split_positions
from cfmvit.models.importing.files import find_weights, is_torchscript, read_config, read_tensors
from cfmvit.models.importing.modules import activation, is_plain
from cfmvit.models.importing.parts import BlockNames, Weights, take_blocks, take_pair
from cfmvit.models.importing.source import Source
from cfmvit.models.importing.statistics import OPENAI, Statistics
from cfmvit.models.importing.timm import take_trunk
from cfmvit.models.importing.tokenizers import given_tokenizer, open_clip_tokenizer
from cfmvit.models.tokenizer import Tokenizer

_BLOCK = BlockNames(
    norms=("ln_1", "ln_2"),
    qkv=("attn.in_proj_",),
    proj="attn.out_proj",
    mlp=("mlp.c_fc", "mlp.c_proj"),
    scales=("ls_1.gamma", "ls_2.gamma"),
)
_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
# Numbers that OpenAI's archives hold as tensors.
_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def from_open_clip(
    source: Any,
    model: str | Mapping[str, Any] | None = None,
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    mean: Any = None,
    std: Any = None,
    **options: Any,
) -> CFMViT:
    """Make a CFM-ViT of an open_clip model, or of OpenAI's CLIP; it embeds as the original does.

    Args:
        source: a file of weights (a state dict, a training checkpoint, OpenAI's archive); a folder with
            ``open_clip_config.json``; ``"hf:org/name"`` of such a one on the hub; or a model at hand.
        model: what the weights in a file are of: a name that ``open_clip.list_models()`` has, a configuration, or the path of
            one. OpenAI's archives and folders need none.
        tokenizer: a ``Tokenizer``, or the path of one (see ``given_tokenizer``); by default CLIP's, or the one in the folder.
        mean, std: image statistics; by default those of the folder or the model, else OpenAI's.
        options: fields of ``ModelConfig``, such as ``attention``.

    Raises:
        ImportError: open_clip is not installed.
        FileNotFoundError: a file is missing.
        ValueError: an unknown or unsupported architecture, or weights that do not fit it.
    """
    library = require("open_clip", extra="open_clip")
    folder, name = None, ""
    preprocess: dict[str, Any] = {}
    text_config: dict[str, Any] = {}
    if isinstance(source, (str, os.PathLike)):
        path = local_folder(source)
        if path.is_dir():
            folder, file = path, find_weights(path, "open_clip_model", "open_clip_pytorch_model", "model")
        else:
            file = path
        tensors, origin = read_tensors(file), str(file)
        if model is None and folder is not None and (folder / "open_clip_config.json").is_file():
            saved = read_config(folder / "open_clip_config.json")
            preprocess, model = saved.get("preprocess_cfg") or {}, saved.get("model_cfg")
        config, found_name = _configuration(library, model, tensors, file)
        name, text_config = found_name or Path(os.fspath(source)).name, config["text_cfg"]
        preprocess = preprocess or _preprocessing(library, name)
        like = _skeleton(library, config)
    else:
        like, tensors, origin = source, source.state_dict(), f"a {type(source).__name__}"
        preprocess = getattr(source.visual, "preprocess_cfg", None) or {}
    tensors = {key: value for key, value in tensors.items() if key not in _NUMBERS}
    statistics = Statistics.of(
        preprocess.get("mean", OPENAI.mean) if mean is None else mean,
        preprocess.get("std", OPENAI.std) if std is None else std,
    )
    reader = Source(_separate_text(tensors), origin)
    own, weights = _towers(reader, like, statistics)
    found, own["text_pad_id"] = open_clip_tokenizer(
        text_config, own["vocab_size"], folder, given_tokenizer(tokenizer)[0]
    )
    return build(
        reader, {"name": f"open_clip:{name or type(like).__name__}", **own, **options}, weights, found
    )


def _configuration(
    library: Any, model: Any, tensors: Mapping[str, Tensor], file: Path
) -> tuple[dict[str, Any], str]:
    """Return the configuration of the model that the weights are of, and its name."""
    if isinstance(model, Mapping):
        config, name = dict(model), ""
    elif model is not None and Path(model).is_file():
        config, name = read_config(Path(model)), Path(model).stem
        config = config.get("model_cfg", config)
    elif model is not None:
        found = library.get_model_config(model)
        if found is None:
            raise ValueError(
                f"import: model must be one of open_clip.list_models(), a configuration or the path of one, got {model!r}"
            )
        config, name = found, str(model)
    elif any(number in tensors for number in _NUMBERS) or is_torchscript(file):
        config, name = _openai(Source(tensors, str(file))), "OpenAI"
    else:
        raise ValueError(
            f"import: {file} says nothing of its architecture: give the model's name as open_clip lists it (--model ViT-B-16; "
            "ViT-B-16-quickgelu for weights in OpenAI's form)"
        )
    if any(number in tensors for number in _NUMBERS) and not config.get("quick_gelu"):
        raise ValueError(
            f"import: {file} is OpenAI's archive, whose activations are QuickGELU: give no model, got {name or 'one with others'}"
        )
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ValueError(f"import: a configuration of open_clip must have {', '.join(missing)}")
    return copy.deepcopy(config), name


def _preprocessing(library: Any, name: str) -> dict[str, Any]:
    """Return the image statistics that all of open_clip's own weights of a model have; empty where they differ."""
    tags = library.list_pretrained_tags_by_model(name)
    found = [library.get_pretrained_cfg(name, tag) or {} for tag in tags]
    pairs = {(tuple(one["mean"]), tuple(one["std"])) for one in found if one.get("mean") and one.get("std")}
    return dict(zip(("mean", "std"), pairs.pop())) if len(pairs) == 1 else {}


def _openai(source: Source) -> dict[str, Any]:
    """Read OpenAI's architecture off the shapes: heads are 64 wide and activations QuickGELU in all of them."""
    if "visual.layer1.0.conv1.weight" in source:
        refuse("ModifiedResNet", "it is convolutional")
    width, _, _, patch = source.shape("visual.conv1.weight")
    tokens, _ = source.shape("visual.positional_embedding")
    length, text_width = source.shape("positional_embedding")
    return {
        "embed_dim": source.shape("text_projection")[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": patch * round((tokens - 1) ** 0.5),
            "layers": source.count(r"visual\.transformer\.resblocks\.(\d+)\."),
            "width": width,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": length,
            "vocab_size": source.shape("token_embedding.weight")[0],
            "width": text_width,
            "heads": text_width // 64,
            "layers": source.count(r"transformer\.resblocks\.(\d+)\."),
        },
    }


def _skeleton(library: Any, config: dict[str, Any]) -> Any:
    """Return open_clip's own model of a configuration, without memory: what it is made of says what the weights mean."""
    if config["text_cfg"].get("hf_model_name"):
        refuse(f"the text tower {config['text_cfg']['hf_model_name']}", "it is a Hugging Face model")
    config["vision_cfg"]["timm_model_pretrained"] = False  # or timm would fetch weights
    if "multimodal_cfg" in config:
        refuse("CoCa", "its pooling has many queries, and its text tower a token of its own")
    kind = library.CustomTextCLIP if config.pop("custom_text", False) else library.CLIP
    try:
        with torch.device("meta"):
            return kind(**config)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"import: open_clip can't make a model of this configuration: {error}") from error


def _separate_text(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the text tower's tensors as ``CustomTextCLIP`` does."""
    return {
        f"text.{name}" if name.partition(".")[0] in _TEXT else name: tensor
        for name, tensor in tensors.items()
    }


def _towers(source: Source, like: Any, statistics: Statistics) -> tuple[dict[str, Any], Weights]:
    library = require("open_clip", extra="open_clip")
    if type(like) not in (library.CLIP, library.CustomTextCLIP):
        refuse(type(like).__name__, "only CLIP and CustomTextCLIP are")
    visual, text = like.visual, getattr(like, "text", like)
    source.drop("logit_bias")
    if type(visual).__name__ == "TimmModel":
        options, weights = _timm_tower(source, visual, statistics)
    elif type(visual).__name__ == "VisionTransformer":
        options, weights = _visual(source, visual, statistics)
    else:
        refuse(type(visual).__name__, "it is convolutional")
    own, more = _text(source, text, options.get("embed_dim", options["width"]))
    scale = source.take("logit_scale", *((1,) if source.shape("logit_scale") == (1,) else ()))
    return {**options, **own}, {**weights, **more, "logit_scale": scale.reshape(())}


def _visual(source: Source, visual: Any, statistics: Statistics) -> tuple[dict[str, Any], Weights]:
    if visual.attn_pool is not None:
        refuse("attentional_pool", "it has many queries")
    width, patch = visual.conv1.out_channels, side(list(visual.patch_size), "patch_size")
    joint = visual.proj.shape[1]
    options = {
        "embed_dim": joint,
        "image_size": side(list(visual.grid_size), "image_size") * patch,
        "patch_size": patch,
        "class_token": True,
        "pre_norm": not isinstance(visual.ln_pre, torch.nn.Identity),
        "pooling": {"tok": "class", "avg": "mean"}.get(visual.pool_type)
        or refuse(f"the pooling {visual.pool_type!r}", "an image has one embedding"),
        "pos_resize": "bicubic_antialias",
        # The LN of a class token is the same before and after it is chosen.
        "norm_after_pool": visual.final_ln_after_pool and visual.pool_type == "avg",
        **_transformer(visual.transformer, visual.ln_post, "", "the image tower"),
    }
    weights = _blocks(source, visual.transformer, "visual.transformer", "visual")
    weights |= take_pair(source, "visual.ln_post", "visual.norm", width)
    if options["pre_norm"]:
        weights |= take_pair(source, "visual.ln_pre", "visual.norm_pre", width)
    weight, bias = statistics.fold(source.take("visual.conv1.weight", width, 3, patch, patch), None)
    weights |= {"visual.patch_embed.proj.weight": weight, "visual.patch_embed.proj.bias": bias}
    weights["image_head.proj.weight"] = source.take("visual.proj", width, joint).T.contiguous()
    positions = source.take("visual.positional_embedding", *visual.positional_embedding.shape)
    split_positions(weights, positions, source.take("visual.class_embedding", width))
    return options, weights


def _timm_tower(source: Source, visual: Any, statistics: Statistics) -> tuple[dict[str, Any], Weights]:
    head = dict(visual.head.named_children())
    if set(head) - {"drop", "proj"}:
        refuse(f"the head {', '.join(head)} of a timm tower", "it must be linear")
    proj = head.get("proj")
    options, weights = take_trunk(source, visual.trunk, "visual.trunk.", statistics, classifier=False)
    if proj is not None:
        if proj.bias is not None:
            refuse("timm_proj_bias", "the projection of images has no bias")
        options["embed_dim"] = proj.out_features
        shape = proj.out_features, proj.in_features
        weights["image_head.proj.weight"] = source.take("visual.head.proj.weight", *shape)
    return options, weights


def _text(source: Source, text: Any, joint: int) -> tuple[dict[str, Any], Weights]:
    kind = type(text).__name__
    if kind not in ("CLIP", "TextTransformer"):
        refuse(f"the text tower {kind}", "only open_clip's TextTransformer is")
    if getattr(text, "cls_emb", None) is not None:
        refuse("embed_cls", "a token of its own ends each text")
    pool = text.text_pool_type if kind == "CLIP" else text.pool_type
    if pool == "none":
        refuse("the text pooling 'none'", "a text has one embedding")
    if getattr(text, "use_pad_mask", False):
        refuse("use_pad_mask", "padding is seen or is behind the end of a text")
    length, width = text.positional_embedding.shape
    vocabulary, projection = text.vocab_size, text.text_projection
    biased = isinstance(projection, torch.nn.Linear)
    options = {
        "vocab_size": vocabulary,
        "context_length": length,
        "text_causal": text.attn_mask is not None,
        "text_pooling": "eot" if pool == "eos" else pool,
        "text_eot_id": text.text_eos_id if kind == "CLIP" else text.eos_id,
        "text_projection_bias": biased,
        **_transformer(text.transformer, text.ln_final, "text_", "the text tower"),
    }
    weights = _blocks(source, text.transformer, "text.transformer", "text")
    weights |= take_pair(source, "text.ln_final", "text.norm", width)
    weights["text.token_embed.weight"] = source.take("text.token_embedding.weight", vocabulary, width)
    weights["text.pos_embed"] = source.take("text.positional_embedding", length, width)
    if biased:
        weights |= take_pair(source, "text.text_projection", "text.proj", joint, width)
    elif projection is None:
        if width != joint:
            refuse(f"a text tower of {width} without projection", f"images are embedded in {joint}")
        weights["text.proj.weight"] = torch.eye(width)
    else:
        weights["text.proj.weight"] = source.take("text.text_projection", width, joint).T.contiguous()
    return options, weights


def _transformer(transformer: Any, norm: Any, prefix: str, what: str) -> dict[str, Any]:
    block = transformer.resblocks[0]
    if type(block).__name__ != "ResidualAttentionBlock":
        refuse(f"{type(block).__name__} in {what}", "attention and MLP must be plain")
    if not is_plain(norm):
        refuse(f"{type(norm).__name__} in {what}", "norms must be LayerNorm")
    return {
        f"{prefix}width": transformer.width,
        f"{prefix}depth": len(transformer.resblocks),
        f"{prefix}heads": block.attn.num_heads,
        f"{prefix}mlp_width": block.mlp.c_fc.out_features,
        f"{prefix}activation": activation(block.mlp.gelu),
        f"{prefix}norm_eps": norm.eps,
    }


def _blocks(source: Source, transformer: Any, theirs: str, ours: str) -> Weights:
    block = transformer.resblocks[0]
    return take_blocks(
        source,
        f"{theirs}.resblocks.",
        f"{ours}.blocks.",
        _BLOCK,
        depth=len(transformer.resblocks),
        width=transformer.width,
        mlp_width=block.mlp.c_fc.out_features,
        scaled=not isinstance(block.ls_1, torch.nn.Identity),
    )
