"""Parts that every library's towers have, brought to this project's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfmvit.models.importing.source import Source

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class BlockNames:
    """What a library calls the parts of a pre-LN block.

    Attributes:
        qkv: prefixes of ``weight`` and ``bias``: one of all three, or one each of query, key and value.
        scales: names of the LayerScale after attention and MLP, in libraries that have any.
    """

    norms: tuple[str, str]
    qkv: tuple[str, ...]
    proj: str
    mlp: tuple[str, str]
    scales: tuple[str, str] = ("", "")


def take_blocks(
    source: Source,
    prefix: str,
    target: str,
    names: BlockNames,
    *,
    depth: int,
    width: int,
    mlp_width: int,
    scaled: bool = False,
    qkv_bias: bool = True,
) -> Weights:
    """Take blocks as this project names them.

    Args:
        prefix, target: what stands before a block's number, there and here.
        scaled: there is LayerScale, which is multiplied into the layers before it.
        qkv_bias: query, key and value have biases; otherwise those are zeros.
    """
    weights: Weights = {}
    for number in range(depth):
        theirs, ours = f"{prefix}{number}.", f"{target}{number}."
        for name, own in zip(names.norms, ("norm1", "norm2")):
            weights |= take_pair(source, theirs + name, ours + own, width)
        weights |= _take_qkv(source, theirs, names.qkv, f"{ours}attn.qkv", width, qkv_bias)
        first, second = names.mlp
        weights |= take_pair(source, theirs + first, f"{ours}mlp.fc1", mlp_width, width)
        ends = ((names.proj, "attn.proj", width), (second, "mlp.fc2", mlp_width))
        for (name, own, inputs), scale in zip(ends, names.scales):
            weights |= take_pair(source, theirs + name, ours + own, width, inputs)
            if scaled:
                gamma = source.take(theirs + scale, width)
                # Not in place: they may be the weights of a model at hand.
                weights[f"{ours}{own}.weight"] = weights[f"{ours}{own}.weight"] * gamma[:, None]
                weights[f"{ours}{own}.bias"] = weights[f"{ours}{own}.bias"] * gamma
    return weights


def take_pair(source: Source, theirs: str, ours: str, *shape: int) -> Weights:
    """Take the weight, of that shape, and the bias of a layer."""
    return {
        f"{ours}.weight": source.take(f"{theirs}.weight", *shape),
        f"{ours}.bias": source.take(f"{theirs}.bias", shape[0]),
    }


def _take_qkv(
    source: Source, theirs: str, prefixes: Sequence[str], ours: str, width: int, biased: bool
) -> Weights:
    rows = 3 * width // len(prefixes)
    weight = torch.cat([source.take(f"{theirs}{prefix}weight", rows, width) for prefix in prefixes])
    if not biased:
        return {f"{ours}.weight": weight, f"{ours}.bias": torch.zeros(3 * width)}
    bias = torch.cat([source.take(f"{theirs}{prefix}bias", rows) for prefix in prefixes])
    return {f"{ours}.weight": weight, f"{ours}.bias": bias}


def take_query_pool(probe: Tensor, in_weight: Tensor, in_bias: Tensor, width: int) -> Weights:
    """Return an attention pool's query, which is the same for every image, and its keys and values.

    Args:
        probe: (width,).
        in_weight, in_bias: (3 * width, width) and (3 * width,): query, key and value.
    """
    return {
        "image_head.attn_pool.query": in_weight[:width] @ probe + in_bias[:width],
        "image_head.attn_pool.kv.weight": in_weight[width:],
        "image_head.attn_pool.kv.bias": in_bias[width:],
    }
