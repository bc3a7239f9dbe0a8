"""Transformer blocks: timm's, with a choice of attention kernel."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfmvit._require import require
from cfmvit.models.architecture import Activation
from cfmvit.models.pieces import attend_in_pieces, gelu_in_place, inferring_on_cpu

_timm: Any = require("timm.models.vision_transformer", extra="models")


class Attention(_timm.Attention):
    """timm's attention on torch's ``scaled_dot_product_attention``.

    On the CPU it is computed in float32 even where the rest is bfloat16: torch's CPU kernel is two to three times
    faster that way, and more accurate.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over x, (B, N, C); ``attn_mask`` is broadcastable to (B, H, N, N), boolean, True where allowed."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if inferring_on_cpu(x) and qkv.dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", enabled=False):
                out = attend_in_pieces(qkv, attn_mask, is_causal)
        elif x.device.type == "cpu":
            precise = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
            with torch.autocast("cpu", enabled=False):
                out = _attend(precise, attn_mask, is_causal)
            out = out.to(qkv.dtype)
        else:
            out = _attend(qkv, attn_mask, is_causal)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))

    def values(self, x: Tensor) -> Tensor:
        """Project the values of x, (B, N, C), as if every token attended to itself alone."""
        width = x.shape[-1]
        bias = None if self.qkv.bias is None else self.qkv.bias[2 * width :]
        return self.proj(F.linear(x, self.qkv.weight[2 * width :], bias))


def _attend(qkv: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    query, key, value = qkv.unbind(0)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, is_causal=is_causal)


class XformersAttention(Attention):
    """timm's attention computed by ``xformers.ops.memory_efficient_attention``; the same weights and numbers."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over x, (B, N, C); ``attn_mask`` is broadcastable to (B, H, N, N), boolean, True where allowed.

        Masks, and tensors on the CPU, for which xformers has no kernel, go through torch's SDPA.
        """
        if attn_mask is not None or is_causal or x.device.type == "cpu":
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        return self._by_xformers(x)

    def _by_xformers(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        ops = require("xformers.ops", extra="xformers")
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).unbind(2)
        out = ops.memory_efficient_attention(query, key, value, scale=self.scale)
        return self.proj(out.reshape(batch, tokens, width))


class Block(_timm.Block):
    """timm's pre-LN block.

    Attributes:
        checkpointed: compute the block again in the backward pass, rather than keep what is in it.
    """

    checkpointed = False

    def forward(self, x: Tensor, values: bool = False, **options: Any) -> Tensor:
        """Run the block over x, (B, N, C); options as ``Attention.forward`` takes them.

        With ``values`` it does so without attention: each token takes its own value, see ``Attention.values``.
        """
        if values:
            x = x + self.attn.values(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        run = super().forward
        if self.checkpointed and self.training and torch.is_grad_enabled():
            return checkpoint(run, x, use_reentrant=False, **options)
        return run(x, **options)


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x * sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)


class TanhGELU(nn.GELU):
    """GELU by its usual approximation; on the CPU, where nothing is differentiated, its input is overwritten."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, input: Tensor) -> Tensor:
        """Return 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
        at_once = input.is_contiguous() and inferring_on_cpu(input)
        return gelu_in_place(input) if at_once else super().forward(input)


_ACTIVATIONS: dict[str, Any] = {
    "gelu_tanh": TanhGELU,
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
}


def make_block(
    width: int,
    heads: int,
    attention: str = "sdpa",
    *,
    mlp_width: int | None = None,
    activation: Activation = "gelu_tanh",
    eps: float = 1e-6,
) -> nn.Module:
    """Return a pre-LN block with qkv bias; MLP ratio 4 unless ``mlp_width`` says another hidden width."""
    return Block(
        width,
        heads,
        # timm rounds width * ratio down; half a unit keeps the product off the edge.
        mlp_ratio=4.0 if mlp_width is None else (mlp_width + 0.5) / width,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=eps),
        act_layer=_ACTIVATIONS[activation],
        attn_layer=XformersAttention if attention == "xformers" else Attention,
    )


def checkpoint_activations(model: nn.Module) -> None:
    """Let all blocks of a model be computed again in the backward pass: for one more forward pass, the memory of one block."""
    for module in model.modules():
        if isinstance(module, Block):
            module.checkpointed = True


def make_mlp(width: int, hidden: int, activation: Activation) -> nn.Module:
    """Return the MLP of a block."""
    return _timm.Mlp(width, hidden, act_layer=_ACTIVATIONS[activation])


def choose_attention(attention: str) -> str:
    """Resolve ``"auto"``: xformers where it is installed and there is a GPU to run it, else torch's SDPA.

    Raises:
        ImportError: ``"xformers"`` is asked for and not installed.
    """
    if attention == "xformers":
        require("xformers.ops", extra="xformers")
        return attention
    if attention == "auto" and torch.cuda.is_available():
        try:
            require("xformers.ops", extra="xformers")
        except ImportError:
            return "sdpa"
        return "xformers"
    return "sdpa"


def init_weights(module: nn.Module) -> None:
    """Initialise linear layers with Xavier-uniform weights and zero biases, as MAE does."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
