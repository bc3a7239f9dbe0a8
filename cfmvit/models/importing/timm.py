"""timm's plain vision transformers: state dicts with the name of their model, folders of the hub's, and models at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from cfmvit._require import require
from cfmvit.models.cfm_vit import CFMViT
from cfmvit.models.hub import local_folder
from cfmvit.models.importing.build import build, refuse, side, split_positions
from cfmvit.models.importing.files import find_weights, read_config, read_tensors
from cfmvit.models.importing.modules import activation, is_plain
from cfmvit.models.importing.parts import BlockNames, Weights, take_blocks, take_pair, take_query_pool
from cfmvit.models.importing.source import Source
from cfmvit.models.importing.statistics import IMAGENET, Statistics

BLOCK = BlockNames(
    norms=("norm1", "norm2"),
    qkv=("attn.qkv.",),
    proj="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    scales=("ls1.gamma", "ls2.gamma"),
)


def from_timm(
    source: Any, model: str | None = None, *, mean: Any = None, std: Any = None, **options: Any
) -> CFMViT:
    """Make the image tower of a CFM-ViT of timm's ``VisionTransformer``, to pretrain from; it has no text tower.

    ``encode_image`` gives what the original's classifier is given; the classifier itself is left out.

    Args:
        source: a file of weights; a folder with timm's ``config.json``; ``"hf:org/name"`` of such a one on the hub; or a model at
            hand.
        model: the name of the model that the weights in a file are of.
        mean, std: image statistics; by default those of the folder or the model, else ImageNet's.
        options: fields of ``ModelConfig``: ``attention``, and what the text tower that pretraining adds is made of.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown or unsupported architecture, or weights that do not fit it.
    """
    library = require("timm", extra="models")
    data: dict[str, Any] = {}
    if isinstance(source, (str, os.PathLike)):
        path = local_folder(source)
        arguments: dict[str, Any] = {}
        file = find_weights(path, "model", "pytorch_model") if path.is_dir() else path
        if model is None and path.is_dir():
            saved = read_config(path / "config.json")
            model, data = saved.get("architecture"), saved.get("pretrained_cfg") or {}
            arguments = {"num_classes": saved.get("num_classes"), "global_pool": saved.get("global_pool")}
            arguments = {key: value for key, value in arguments.items() if value is not None}
            arguments |= saved.get("model_args") or {}
        if model is None:
            raise ValueError(
                f"import: {path} says nothing of its architecture: give the model's name as timm lists it (--model "
                "vit_base_patch16_224)"
            )
        if not library.is_model(model):
            raise ValueError(f"import: model must be one that timm lists, got {model!r}")
        tensors, origin, name = read_tensors(file), str(file), model
        with torch.device("meta"):
            like = library.create_model(model, pretrained=False, **arguments)
        data = data or like.pretrained_cfg
    else:
        like, tensors, origin, name = (
            source,
            source.state_dict(),
            f"a {type(source).__name__}",
            "VisionTransformer",
        )
        data = getattr(source, "pretrained_cfg", None) or {}
    statistics = Statistics.of(
        data.get("mean", IMAGENET.mean) if mean is None else mean,
        data.get("std", IMAGENET.std) if std is None else std,
    )
    reader = Source(tensors, origin)
    own, weights = take_trunk(reader, like, "", statistics)
    named = {"name": f"timm:{name}", "text_tower": False, **own, **options}
    weights["logit_scale"] = initial_scale()
    return build(reader, named, weights, None)


def initial_scale() -> torch.Tensor:
    """Return the temperature that pretraining starts with, where a checkpoint has none."""
    return torch.tensor(1 / 0.07).log()


def take_trunk(
    source: Source, like: Any, prefix: str, statistics: Statistics, *, classifier: bool = True
) -> tuple[dict[str, Any], Weights]:
    """Take a timm tower, ``{prefix}...``, made like a model at hand.

    Args:
        classifier: leave out the head, whose outputs are classes; otherwise there must be none.
    """
    options = _options(like)
    width, patch = options["width"], options["patch_size"]
    block = like.blocks[0]
    if classifier:
        source.drop(rf"{prefix}head\.(weight|bias)")
    elif not isinstance(like.head, nn.Identity):
        refuse("a head of timm's with a bias", "the projection of images has none")
    weights = take_blocks(
        source,
        f"{prefix}blocks.",
        "visual.blocks.",
        BLOCK,
        depth=options["depth"],
        width=width,
        mlp_width=options["mlp_width"],
        scaled=not isinstance(block.ls1, nn.Identity),
        qkv_bias=block.attn.qkv.bias is not None,
    )
    final = "norm" if isinstance(like.fc_norm, nn.Identity) else "fc_norm"
    weights |= take_pair(source, f"{prefix}{final}", "visual.norm", width)
    if options["pre_norm"]:
        weights |= take_pair(source, f"{prefix}norm_pre", "visual.norm_pre", width)
    proj = like.patch_embed.proj
    weight = source.take(f"{prefix}patch_embed.proj.weight", width, 3, patch, patch)
    bias = None if proj.bias is None else source.take(f"{prefix}patch_embed.proj.bias", width)
    weight, bias = statistics.fold(weight, bias)
    weights |= {"visual.patch_embed.proj.weight": weight, "visual.patch_embed.proj.bias": bias}
    positions = source.take(f"{prefix}pos_embed", *like.pos_embed.shape)[0]
    class_token = None
    if options["class_token"]:
        class_token = source.take(f"{prefix}cls_token", 1, 1, width).flatten()
        if like.no_embed_class:
            positions = torch.cat([torch.zeros(1, width), positions])
    split_positions(weights, positions, class_token)
    if like.attn_pool is not None:
        weights |= _pool(source, f"{prefix}attn_pool", width, options["mlp_width"])
    return options, weights


def _unserved(like: Any) -> Iterator[tuple[str, str]]:
    """Yield what of a model isn't served, and why."""
    kind = type(like).__name__
    if kind != "VisionTransformer" or not type(like).__module__.endswith("timm.models.vision_transformer"):
        yield kind, _WHY.get(kind, "it is no plain VisionTransformer")
        return
    block, patches = like.blocks[0], like.patch_embed
    if like.reg_token is not None:
        yield "reg_tokens", "there are register tokens beside the class token"
    if like.pos_embed is None:
        yield "VisionTransformer without pos_embed", "positions must be learned"
    if like.global_pool not in ("", "avg", "token", "map"):
        yield f"global_pool={like.global_pool!r}", "pooling must be avg, token or map"
    if getattr(like, "pool_include_prefix", False):
        yield "pool_include_prefix", "the mean is of the patches"
    if type(patches).__name__ != "PatchEmbed" or not _is_absent(patches, "norm"):
        yield type(patches).__name__, "patches must be embedded by one linear layer"
    if type(block).__name__ != "Block":
        yield type(block).__name__, "blocks must be timm's Block"
    if type(block.mlp).__name__ != "Mlp":
        yield type(block.mlp).__name__, "an MLP must be two layers without a gate"
    if type(block.attn).__name__ != "Attention" or getattr(block.attn, "gate", None) is not None:
        yield type(block.attn).__name__, "attention must be plain"
    inner = [name for name in ("q_norm", "k_norm", "norm") if not _is_absent(block.attn, name)]
    if inner or not _is_absent(block.mlp, "norm"):
        yield (
            f"VisionTransformer with {', '.join(inner) or 'scale_mlp_norm'}",
            "there must be no norms within a layer",
        )
    norms = (_final_norm(like), block.norm1, block.norm2)
    if not all(is_plain(norm) for norm in norms) or len({norm.eps for norm in norms}) != 1:
        yield f"VisionTransformer with {type(norms[0]).__name__}", "norms must be LayerNorms of one eps"


def _is_absent(module: Any, name: str) -> bool:
    return isinstance(getattr(module, name, nn.Identity()), nn.Identity)


def _final_norm(like: Any) -> Any:
    return like.norm if isinstance(like.fc_norm, nn.Identity) else like.fc_norm


def _options(like: Any) -> dict[str, Any]:
    """Say in fields of ``ModelConfig`` what a model is made of, or that it isn't served."""
    for what, why in _unserved(like):
        refuse(f"timm's {what}", why)
    block = like.blocks[0]
    patch = side(list(like.patch_embed.patch_size), "patch_size")
    pooling = {"token": "class", "map": "attention", "": "class" if like.has_class_token else "mean"}
    return {
        "image_size": side(list(like.patch_embed.grid_size), "image_size") * patch,
        "patch_size": patch,
        "width": like.embed_dim,
        "depth": len(like.blocks),
        "heads": block.attn.num_heads,
        "mlp_width": block.mlp.fc1.out_features,
        "activation": activation(block.mlp.act),
        "norm_eps": _final_norm(like).eps,
        "class_token": like.has_class_token,
        "pre_norm": not isinstance(like.norm_pre, nn.Identity),
        "pooling": pooling.get(like.global_pool, "mean"),
        "norm_after_pool": like.global_pool == "avg" and not isinstance(like.fc_norm, nn.Identity),
        "pos_resize": "bicubic_antialias",
    }


def _pool(source: Source, theirs: str, width: int, hidden: int) -> Weights:
    ours = "image_head.attn_pool"
    query = take_pair(source, f"{theirs}.q", "q", width, width)
    keys = take_pair(source, f"{theirs}.kv", "kv", 2 * width, width)
    weights = take_query_pool(
        source.take(f"{theirs}.latent", 1, 1, width).flatten(),
        torch.cat([query["q.weight"], keys["kv.weight"]]),
        torch.cat([query["q.bias"], keys["kv.bias"]]),
        width,
    )
    weights |= take_pair(source, f"{theirs}.proj", f"{ours}.proj", width, width)
    weights |= take_pair(source, f"{theirs}.norm", f"{ours}.norm", width)
    weights |= take_pair(source, f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1", hidden, width)
    return weights | take_pair(source, f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2", width, hidden)


_WHY = {
    "Eva": "it has rotary positions, and a gated MLP (SwiGLU)",
    "VisionTransformerDistilled": "it has a second class token",
    "VisionTransformerRelPos": "its positions are relative",
    "ConvNeXt": "it is convolutional",
    "ResNet": "it is convolutional",
    "SwinTransformer": "its tokens are merged from stage to stage",
}
