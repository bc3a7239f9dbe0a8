"""Masked autoencoders (He et al. 2022): `random_masking`, `unshuffle`, `forward_loss`, and MAE models that use them.

    cfmvit.integrations.mae.install(model)      # a MaskedAutoencoderViT, or its class

The same random numbers give the same masks as MAE's. Only what the mask keeps is copied, the decoder's input is written once,
and the loss reads the images where they are, without their patches.
"""

from __future__ import annotations

import copyreg
import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from cfmvit import ops
from cfmvit.integrations import _fallback
from cfmvit.integrations._patch import Patch
from cfmvit.ops.masking import reference

_PARTS = (
    "decoder_embed",
    "mask_token",
    "decoder_pos_embed",
    "decoder_blocks",
    "decoder_norm",
    "decoder_pred",
)


def random_masking(
    x: Tensor, mask_ratio: float, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep a random part of each sample's tokens.

    Args:
        x: (B, N, D)
            Tokens.
        mask_ratio: float in [0, 1]
            Share of tokens that are removed.
        noise: (B, N) floating, optional
            Tokens of the least noise are kept; drawn as MAE draws it if left out.

    Returns:
        The tokens kept, (B, int(N * (1 - mask_ratio)), D); the mask, (B, N), 0 where a token is kept and 1 where it is removed;
        ids_restore, (B, N) int64, the place of each token in the shuffled order, tokens kept first.

    Raises:
        ValueError, TypeError: an argument breaks the rules of `cfmvit.ops.random_masking`.
    """
    batch, count = x.shape[:2]
    noise = torch.rand(batch, count, device=x.device) if noise is None else noise.to(x.device)
    masking = ops.random_masking(batch, count, mask_ratio, noise=noise)
    mask = (masking.restore >= masking.keep.shape[1]).to(torch.get_default_dtype())
    return take("random_masking", x, masking.keep), mask, masking.restore


def unshuffle(x: Tensor, mask_token: Tensor, ids_restore: Tensor, pos_embed: Tensor | None = None) -> Tensor:
    """Make the decoder's sequence: tokens put back in their places, the mask token elsewhere, positions added.

    Args:
        x: (B, 1 + K, D) floating
            The class token and the tokens that were kept.
        mask_token: (1, 1, D) floating
            What stands for a removed token.
        ids_restore: (B, N)
            As `random_masking` gives it, a permutation of 0..N-1 in each row.
        pos_embed: (1, 1 + N, D) floating, optional
            The decoder's positions.

    Returns:
        (B, 1 + N, D), of the widest dtype given.

    Raises:
        ValueError, TypeError: an argument breaks the rules of `cfmvit.ops.restore_tokens`.
    """
    given = [value for value in (mask_token.flatten(), pos_embed) if value is not None]
    dtype = x.dtype
    for value in given:
        dtype = torch.promote_types(dtype, value.dtype)
    order = nn.functional.pad(ids_restore + 1, (1, 0))  # the class token stays first

    def run(restore: Any) -> Any:
        def function(x: Tensor, mask_token: Tensor, *pos_embed: Tensor) -> Tensor:
            return restore(x, mask_token, order, pos_embed[0].flatten(0, 1) if pos_embed else None)

        return function

    op = lambda x, token, order, pos: ops.restore_tokens(x, token, order, pos_embed=pos)
    op, formula = run(op), run(reference.restore_tokens)
    inputs = [value.to(dtype) for value in (x, *given)]
    reason = _fallback.why_not("restore_tokens", inputs[0])
    if reason:
        _fallback.say("unshuffle", reason)
        return formula(*inputs)
    return _fallback.twice("unshuffle", op, formula, *inputs)


def forward_loss(
    imgs: Tensor,
    pred: Tensor,
    mask: Tensor,
    patch_size: int,
    norm_pix_loss: bool = False,
    *,
    square: bool = True,
) -> Tensor:
    """Average the squared error of predicted pixels over the removed patches.

    Args:
        imgs: (B, C, H, W) floating
            Images.
        pred: (B, N, P * P * C) floating
            Predicted patches, each in the order row, column, channel.
        mask: (B, N)
            Weight of each patch's loss: 1 where it was removed, 0 where it was kept.
        patch_size: int
            P.
        norm_pix_loss: bool, default False
            Predict pixels less their patch's mean, over its standard deviation.
        square: bool, default True
            Refuse images that are not square, as MAE does.

    Returns:
        The loss, 0-d, float32 (float64 for a float64 prediction); NaN for a mask of zeros, as in MAE.

    Raises:
        AssertionError: images are not square, or not a multiple of the patch size.
        ValueError, TypeError: an argument breaks the rules of `cfmvit.ops.masked_pixel_loss`.
    """
    height, width = imgs.shape[-2:]
    if patch_size < 1 or height % patch_size or width % patch_size or (square and height != width):
        wanted = "square, with sides that are" if square else "images with sides that are"
        raise AssertionError(
            f"forward_loss: imgs must be {wanted} multiples of {patch_size}, got {height} x {width}"
        )
    batch, count = imgs.shape[0], (height // patch_size) * (width // patch_size)
    if mask.shape != (batch, count):
        raise ValueError(f"forward_loss: mask must have shape {(batch, count)}, got {tuple(mask.shape)}")
    every = torch.arange(count, device=imgs.device).expand(batch, count)

    def op(pred: Tensor) -> Tensor:
        return ops.masked_pixel_loss(pred, imgs, every, patch_size, normalize=norm_pix_loss, reduction="none")

    def formula(pred: Tensor) -> Tensor:
        dtype = torch.promote_types(pred.dtype, torch.float32)
        target = reference.patches_channel_last(imgs.to(dtype), patch_size)
        if norm_pix_loss:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return (pred.to(dtype) - target).square().mean(-1)

    learned = torch.is_grad_enabled() and imgs.requires_grad
    reason = "gradients of the images" if learned else _fallback.why_not("masked_pixel_loss", pred)
    if reason:
        _fallback.say("forward_loss", reason)
        losses = formula(pred)
    else:
        losses = _fallback.twice("forward_loss", op, formula, pred)
    mask = mask.to(losses.dtype)  # the sum of a half-precision mask can leave its range
    return (losses * mask).sum(1).sum() / mask.sum()


def install(model: nn.Module | type) -> Patch:
    """Make a MAE model, or every model of a class, mask, decode and take its loss by the functions above.

    Replaced are the methods `random_masking(x, mask_ratio)`, `forward_decoder(x, ids_restore)` and `forward_loss(imgs, pred,
    mask)` of the published `MaskedAutoencoderViT`; parameters and state dict stay as they are. A model becomes one of a subclass
    of its class, so copies, replicas and pickles of it are of that subclass too, and stay so.

    Returns:
        The patch: `.remove()` it, or use it in a `with` statement.

    Raises:
        TypeError: `model` is no masked autoencoder of that form.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    owner = model if isinstance(model, type) else type(model)
    missing = [name for name in _METHODS if not hasattr(owner, name)]
    if isinstance(model, nn.Module):
        missing += [part for part in _PARTS if not hasattr(model, part)]
    if missing:
        raise TypeError(
            f"install: model must be a MaskedAutoencoderViT, got {owner.__name__} without {', '.join(missing)}"
        )
    if isinstance(model, type):
        return Patch((model, name, method) for name, method in _METHODS.items())
    own = [name for name in _METHODS if name in vars(model)]
    if own:
        warnings.warn(
            f"install: {', '.join(own)} of the model itself hide its class's, and are left", stacklevel=2
        )
    installed = owner is _serving(owner.__base__)  # a copy of such a model, or one patched twice
    return Patch([(model, "__class__", owner if installed else _serving(owner))])


@functools.cache
def _serving(base: Any) -> type:
    """Return the subclass of a MAE class whose models use the functions above; one for each class, so that types agree."""

    def reduce(self: Any, protocol: int) -> tuple[Any, ...]:
        """Name the class by the one it was made of: it is itself nowhere to be imported from."""
        make, arguments, *state = base.__reduce_ex__(self, max(protocol, 2))
        if make is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return make, arguments, *state
        return _made, (base, *arguments[1:]), *state

    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**names, **_METHODS, "__reduce_ex__": reduce})


def _made(base: type, *arguments: Any) -> Any:
    made = _serving(base)
    return made.__new__(made, *arguments)


def take(name: str, tokens: Tensor, index: Tensor) -> Tensor:
    """Gather tokens (B, N, D) by index (B, K), (B, K, D); `name` is the drop-in's, for the warning."""
    formula = lambda tokens: reference.gather_tokens(tokens, index, None, None)
    reason = _fallback.why_not("gather_tokens", tokens)
    if reason:
        _fallback.say(name, reason)
        return formula(tokens)
    return _fallback.twice(name, lambda tokens: ops.gather_tokens(tokens, index), formula, tokens)


def _random_masking(self: Any, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    return random_masking(x, mask_ratio)


def _forward_decoder(self: Any, x: Tensor, ids_restore: Tensor) -> Tensor:
    x = unshuffle(self.decoder_embed(x), self.mask_token, ids_restore, self.decoder_pos_embed)
    for block in self.decoder_blocks:
        x = block(x)
    return self.decoder_pred(self.decoder_norm(x))[:, 1:]


def _forward_loss(self: Any, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
    return forward_loss(imgs, pred, mask, self.patch_embed.patch_size[0], self.norm_pix_loss)


_METHODS = {method.__name__[1:]: method for method in (_random_masking, _forward_decoder, _forward_loss)}
