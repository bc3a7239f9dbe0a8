"""In what towers of other libraries differ from this project's own: options that ``cfmvit import`` sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu_tanh", "gelu", "quick_gelu"]


@dataclass
class Architecture:
    """Options of both towers; the defaults are those of CFM-ViT, and saved only where a model has others.

    Attributes:
        embed_dim: width of the joint space, to which the image tower is projected; None is the tower's own width, unprojected.
        class_token: a token before the patches; it holds its own positional embedding, too.
        pre_norm: LN of the embedded tokens, before the blocks.
        pooling: what an image's embedding is made of: the mean of its patches, the class token, or attention of one query.
        norm_after_pool: the final LN is of the mean, not of each token.
        mlp_width: hidden width of the blocks; None is four times the tower's.
        pos_resize: how learned positions come to another grid.
        text_tower: False where there is none, as in models that were trained on images alone.
        text_causal: a token sees those before it only, padding included; otherwise, with ``mean``, all but padding.
        text_pooling: the mean of the tokens, that of the highest id, the first one of ``text_eot_id``, the last or the first.
        text_pad_id: what texts are padded with by ``encode_text``.
    """

    embed_dim: int | None = None
    class_token: bool = False
    pre_norm: bool = False
    pooling: Literal["mean", "class", "attention"] = "mean"
    norm_after_pool: bool = False
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
    norm_eps: float = 1e-6
    mlp_width: int | None = None
    pos_resize: Literal["bilinear", "bicubic", "bicubic_antialias"] = "bilinear"
    text_tower: bool = True
    text_causal: bool = False
    text_pooling: Literal["mean", "argmax", "eot", "last", "first"] = "mean"
    text_eot_id: int = 0
    text_pad_id: int = 0
    text_projection_bias: bool = False
    text_activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
    text_norm_eps: float = 1e-6
    text_mlp_width: int | None = None

    @property
    def text_full_length(self) -> bool:
        """Whether padding has a part in a text's embedding, so that every text is padded to the full length."""
        unseen = self.text_causal and self.text_pooling in ("argmax", "eot", "first")
        return self.text_pooling != "mean" and not unseen
