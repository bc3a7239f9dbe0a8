"""What a pretraining starts from: fresh weights of a named size, or a model that was pretrained or imported before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cfmvit.models import CFMViT, ModelConfig, Tokenizer, create_model, list_models, model_config
from cfmvit.models.config import saved_config
from cfmvit.models.hub import PREFIX
from cfmvit.models.positions import resize_positions
from cfmvit.pretrain.config import PretrainConfig


class Start(NamedTuple):
    """Where a run begins.

    Attributes:
        config: of the model to make; its ``vocab_size`` is that of the tokenizer where the text tower is fresh.
        before: the model whose weights it takes over; None for fresh ones.
    """

    config: ModelConfig
    before: CFMViT | None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the text tower was trained with."""
        return None if self.before is None or self.before.text is None else self.before.tokenizer


def starting_point(config: PretrainConfig) -> Start:
    """Read what ``config.model`` names, and apply ``config.model_options`` to its configuration.

    Raises:
        ValueError: neither the name of a size nor a model, options that its weights do not fit, or a tokenizer beside that of
            its text tower.
    """
    options: dict[str, Any] = dict(config.model_options)
    place = config.model
    if place in list_models() or not (place.startswith(PREFIX) or Path(place).exists()):
        return Start(model_config(place, **options), None)
    before = CFMViT.from_pretrained(place)
    changes: dict[str, Any] = {"text_tower": True}
    if before.config.reconstruction == "none":
        changes["reconstruction"] = "feature"
    start = Start(saved_config({**before.config.to_dict(), **changes, **options}, place), before)
    if before.text is not None:
        if before.tokenizer is None:
            raise ValueError(f"pretrain: {place} must have the tokenizer of its text tower, got none")
        if config.tokenizer or config.vocab_size:
            raise ValueError(
                f"pretrain: tokenizer and vocab_size must not be given with {place}, whose text tower has a tokenizer"
            )
    return start


def make_model(start: Start, config: PretrainConfig, tokenizer: Tokenizer) -> CFMViT:
    """Make the model of a run.

    Raises:
        ValueError: weights of the model before do not fit; the message names one.
    """
    if start.before is None:
        return create_model(config.model, tokenizer=tokenizer, **config.model_options)
    settings = start.config
    if start.before.text is None and "vocab_size" not in config.model_options:
        settings = replace(settings, vocab_size=tokenizer.vocab_size)
    model = CFMViT(settings, tokenizer)
    _take_over(model, start.before, config.model)
    return model


def _take_over(model: CFMViT, before: CFMViT, place: str) -> None:
    """Load the weights of another model, its learned positions brought to the new grid; what it lacks stays fresh."""
    weights: dict[str, Tensor] = before.state_dict()
    old, new = before.config, model.config
    if "visual.pos_embed" in weights and old.grid != new.grid:
        weights["visual.pos_embed"] = resize_positions(
            weights["visual.pos_embed"], old.grid, new.grid, new.grid, new.pos_resize
        )
    if new.reconstruction != old.reconstruction:
        weights = {name: weight for name, weight in weights.items() if not name.startswith("decoder.")}
    wanted = model.state_dict()
    for name in sorted(weights.keys() | wanted.keys()):
        fresh = (name.startswith("decoder.") and new.reconstruction != old.reconstruction) or (
            name.startswith("text.") and before.text is None
        )
        shapes = [None if name not in some else tuple(some[name].shape) for some in (wanted, weights)]
        if shapes[0] != shapes[1] and not fresh:
            raise ValueError(
                f"pretrain: model_options must fit the weights of {place}: {name} must have the shape {shapes[0] or 'none'}, "
                f"got {shapes[1] or 'none'}"
            )
    model.load_state_dict(weights, strict=False)
