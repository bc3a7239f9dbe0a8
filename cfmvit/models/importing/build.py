"""A CFM-ViT made of what an importer has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from cfmvit.models.architecture import Activation
from cfmvit.models.cfm_vit import CFMViT
from cfmvit.models.config import ModelConfig
from cfmvit.models.importing.parts import Weights
from cfmvit.models.importing.source import Source
from cfmvit.models.tokenizer import Tokenizer


def build(
    source: Source, options: Mapping[str, Any], weights: Weights, tokenizer: Tokenizer | None
) -> CFMViT:
    """Make the model, in evaluation mode; ``options`` are fields of ``ModelConfig``.

    Raises:
        ValueError: the checkpoint and its architecture do not fit.
    """
    source.finish()
    config = ModelConfig(**{"reconstruction": "none", "pos_embed": "learned", **options})
    model = CFMViT(config, tokenizer)
    model.load_state_dict(weights)
    return model.eval()


def refuse(what: str, why: str) -> NoReturn:
    """Raise the error of an architecture that isn't served."""
    raise ValueError(
        f"import: {what} is not supported: {why}; served are plain ViTs with learned positions, and the text "
        "transformers of CLIP and SigLIP"
    )


def side(value: Any, what: str) -> int:
    """Return the side of an image or a patch, which must be a square."""
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(next(iter(sides)), int):
        refuse(f"{what} {value!r}", "images and patches must be squares")
    return int(sides.pop())


def split_positions(weights: Weights, positions: Any, class_token: Any) -> None:
    """Store positions (P + N, C): the first goes into the class token, where there is one."""
    if class_token is not None:
        weights["visual.class_token"] = class_token + positions[0]
        positions = positions[1:]
    weights["visual.pos_embed"] = positions.contiguous()


ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
