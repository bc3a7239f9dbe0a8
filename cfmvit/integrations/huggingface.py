"""Hugging Face transformers: CLIP's loss from embeddings, and ViTMAE's masking and loss.

transformers' `clip_loss(similarity)` is given the logits, which are what costs: nothing can be saved there. `clip_loss` here is
given the embeddings, and `install` has `CLIPModel` call it in training, where the logits are then left out of the output:
`logits_per_image` and `logits_per_text` are None. A CLIPModel in evaluation, or without `return_loss`, is untouched.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from cfmvit._require import require
from cfmvit.integrations import _fallback, mae
from cfmvit.integrations._patch import Patch, existing, original
from cfmvit.integrations.open_clip import ClipLoss

_CLIP, _VIT_MAE = "transformers.models.clip.modeling_clip", "transformers.models.vit_mae.modeling_vit_mae"
# Options of CLIPModel.forward, and the towers that they are for.
_OPTIONS = {
    "interpolate_pos_encoding": ("vision",),
    "output_attentions": ("vision", "text"),
    "output_hidden_states": ("vision", "text"),
}


def clip_loss(text_embeds: Tensor, image_embeds: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Compute transformers' `clip_loss(logit_scale * text_embeds @ image_embeds.T)` without that product.

    Args:
        text_embeds, image_embeds: (B, D) floating
            Embeddings of unit length, pair by pair.
        logit_scale: () floating
            Factor of the similarities: `model.logit_scale.exp()`.

    Returns:
        The loss, 0-d, float32 (float64 for float64 embeddings).

    Raises:
        ValueError, TypeError: an argument breaks the rules of `cfmvit.ops.info_nce`.
    """
    return ClipLoss()(image_embeds, text_embeds, logit_scale)


def random_masking(
    sequence: Tensor, mask_ratio: float, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`ViTMAEEmbeddings.random_masking` as a function: `cfmvit.integrations.mae.random_masking`, with the config's ratio."""
    return mae.random_masking(sequence, mask_ratio, noise)


def forward_loss(
    pixel_values: Tensor, pred: Tensor, mask: Tensor, patch_size: int, norm_pix_loss: bool = False
) -> Tensor:
    """`ViTMAEForPreTraining.forward_loss` as a function: `cfmvit.integrations.mae.forward_loss` of images of any shape."""
    return mae.forward_loss(pixel_values, pred, mask, patch_size, norm_pix_loss, square=False)


def install() -> Patch:
    """Make transformers' `CLIPModel` (in training) and ViTMAE models, made already or later, use the functions above.

    Transformers 4 and 5 are served; what this version has not is named in a warning.

    Returns:
        The patch: `.remove()` it, or use it in a `with` statement.

    Raises:
        ImportError: transformers is not installed.
    """
    clip, vit_mae = (require(module, package="transformers") for module in (_CLIP, _VIT_MAE))
    model = vit_mae.ViTMAEForPreTraining
    loss = (
        (model, "forward_loss", _forward_loss)
        if hasattr(model, "forward_loss")
        else (model, "forward", _mae_forward(vit_mae, original(model, "forward")))
    )
    embeddings = vit_mae.ViTMAEEmbeddings
    replacements = [
        (clip.CLIPModel, "forward", _clip_forward(clip, original(clip.CLIPModel, "forward"))),
        (embeddings, "random_masking", _random_masking),
        loss,
    ]
    return Patch(existing(sys.modules["transformers"], replacements))


@functools.cache
def _clip_forward(clip: ModuleType, theirs: Callable[..., Any]) -> Callable[..., Any]:
    from_features = "get_image_features" in inspect.unwrap(theirs).__code__.co_names  # transformers 5

    @functools.wraps(theirs)  # Trainer reads the signature
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        given = {name: value for name, value in options.items() if value is not None}
        unknown = _unusual(self, rest, set(given) - set(_OPTIONS))
        if unknown and return_loss and self.training:
            _fallback.say("CLIPModel", f"a call with {unknown}")
        if not return_loss or not self.training or unknown:
            return theirs(
                self, input_ids, pixel_values, attention_mask, position_ids, return_loss, *rest, **options
            )
        of = lambda tower: {name: value for name, value in given.items() if tower in _OPTIONS[name]}
        vision_model, text_model = (
            (self.get_image_features, self.get_text_features)
            if from_features
            else (self.vision_model, self.text_model)
        )
        vision = vision_model(pixel_values=pixel_values, **of("vision"))
        text = text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **of("text")
        )
        image_embeds, text_embeds = vision.pooler_output, text.pooler_output
        if not from_features:
            image_embeds, text_embeds = (
                self.visual_projection(image_embeds),
                self.text_projection(text_embeds),
            )
        image_embeds, text_embeds = _unit(image_embeds), _unit(text_embeds)
        return clip.CLIPOutput(
            loss=clip_loss(text_embeds, image_embeds, self.logit_scale.exp()),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )

    return forward


@functools.cache
def _mae_forward(vit_mae: ModuleType, theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Make a `forward` for transformers 5, whose models take the loss there."""

    @functools.wraps(theirs)
    def forward(
        self: Any,
        pixel_values: Any = None,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        unusual = _unusual(self, rest, {"return_dict"} & options.keys())
        if unusual:
            _fallback.say("ViTMAEForPreTraining", f"a call with {unusual}")
            return theirs(self, pixel_values, noise, interpolate_pos_encoding, *rest, **options)
        encoded = self.vit(
            pixel_values, noise=noise, interpolate_pos_encoding=interpolate_pos_encoding, **options
        )
        logits = self.decoder(
            encoded.last_hidden_state, encoded.ids_restore, interpolate_pos_encoding=interpolate_pos_encoding
        ).logits
        return vit_mae.ViTMAEForPreTrainingOutput(
            loss=_forward_loss(self, pixel_values, logits, encoded.mask, bool(interpolate_pos_encoding)),
            logits=logits,
            mask=encoded.mask,
            ids_restore=encoded.ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    return forward


def _unusual(model: Any, rest: tuple[Any, ...], options: set[str]) -> str:
    """Say what of a call is left to transformers; empty where nothing is."""
    if rest:
        return "positional options"
    if options:
        return ", ".join(sorted(options))
    return "" if getattr(model.config, "return_dict", True) else "return_dict=False"


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _random_masking(
    self: Any, sequence: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return random_masking(sequence, self.config.mask_ratio, noise)


def _forward_loss(
    self: Any, pixel_values: Tensor, pred: Tensor, mask: Tensor, interpolate_pos_encoding: bool = False
) -> Tensor:
    height, width = pixel_values.shape[-2:]
    size = self.config.patch_size
    if pixel_values.shape[1] != self.config.num_channels:
        raise ValueError(
            f"forward_loss: pixel_values must have {self.config.num_channels} channels, got {pixel_values.shape[1]}"
        )
    if height % size or width % size or (height != width and not interpolate_pos_encoding):
        raise ValueError(
            f"forward_loss: pixel_values must be square unless interpolate_pos_encoding, with sides that are multiples of "
            f"{size}, got {height} x {width}"
        )
    return forward_loss(pixel_values, pred, mask, size, self.config.norm_pix_loss)
