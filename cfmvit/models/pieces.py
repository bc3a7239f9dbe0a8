"""Attention and GELU on the CPU where nothing is differentiated: in pieces that stay in the processor's cache.

An image of 1024 px has 38 MB of queries, keys and values in float32, more than what the attention within a window needs at a time
by a factor of sixteen.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_BYTES = 4 << 20  # of a piece's queries, keys and values
_HIDDEN = 1 << 18  # numbers of a piece of the GELU
# 0.5 (1 + tanh(y)) = sigmoid(2 y), for y = sqrt(2 / pi) (x + 0.044715 x^3).
_LINEAR, _CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


def inferring_on_cpu(x: Tensor) -> bool:
    """Tell whether pieces may be taken: eagerly, on the CPU, without gradients. A trace would keep their number for other sizes."""
    recorded = torch.compiler.is_compiling() or torch._C._is_tracing()
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not recorded


def attend_in_pieces(qkv: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """Attend in float32, some sequences or some heads of one at a time.

    Args:
        qkv: (3, B, H, N, D) bfloat16 or float16; views will do.
        attn_mask: boolean, broadcastable to (B, H, N, N), True where allowed.

    Returns:
        (B, H, N, D) of the dtype of ``qkv``; its memory is (B, N, H, D).
    """
    _, batch, heads, tokens, width = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, width).transpose(1, 2)
    a_head = max(1, 3 * 4 * tokens * width)
    sequences, of_one = max(1, _BYTES // (a_head * heads)), max(1, min(heads, _BYTES // a_head))
    mask = None if attn_mask is None else attn_mask.expand(batch, heads, -1, -1)
    for first in range(0, batch, sequences):
        for head in range(0, heads, of_one):
            part = slice(first, first + sequences), slice(head, head + of_one)
            query, key, value = qkv[:, part[0], part[1]].float().unbind(0)
            out[part] = F.scaled_dot_product_attention(
                query, key, value, attn_mask=None if mask is None else mask[part], is_causal=is_causal
            )
    return out


def gelu_in_place(x: Tensor) -> Tensor:
    """Overwrite x, which is contiguous, with its GELU by the approximation with tanh, computed in float32, and return it.

    PyTorch's tanh takes longer than all of this, and so does touching the memory of another result.
    """
    for piece in x.view(-1).split(_HIDDEN):
        wide = piece.float()
        inner = (wide * wide).mul_(_CUBIC).add_(_LINEAR).mul_(wide)
        torch.mul(inner.sigmoid_(), wide, out=piece)
    return x
