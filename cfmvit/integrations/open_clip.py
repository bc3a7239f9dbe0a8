"""open_clip's contrastive losses without their logits: `ClipLoss`, `SigLipLoss`, and open_clip's own training on them.

    python -m cfmvit.integrations.open_clip --model ViT-B-32 --train-data ...   # open_clip_train.main, patched

`install` replaces the two classes' `forward`, so every loss is served wherever it was imported or built: by `create_loss`, by a
training task, or inside `CoCaLoss`. `DistillClipLoss` needs the logits themselves and is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfmvit._require import require
from cfmvit.integrations import _fallback, _gathering
from cfmvit.integrations._patch import Patch
from cfmvit.ops import info_nce, siglip_loss
from cfmvit.ops.contrastive.native import why_not_triton


class ClipLoss(nn.Module):
    """`open_clip.loss.ClipLoss`: the mean of both directions' cross-entropies, on `cfmvit.ops.info_nce`.

    The value of all ranks' losses and the gradients of all four combinations of `local_loss` and `gather_with_grad` are the
    original's; see `_gathering`. The loss is float32 (float64 for float64 features).

    Raises:
        NotImplementedError: use_horovod is set; ranks talk through torch.distributed.
        ValueError, TypeError: features or logit_scale break the rules of `cfmvit.ops.info_nce`.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise NotImplementedError(
                f"ClipLoss: use_horovod must be False, got {use_horovod!r}: ranks are gathered by torch.distributed"
            )
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """Number of the matching text of each image of this rank, (num_logits,) int64."""
        if self.prev_num_logits == num_logits and device in self.labels:
            return self.labels[device]
        first = num_logits * self.rank if self.world_size > 1 and self.local_loss else 0
        labels = torch.arange(first, first + num_logits, device=device)
        if self.cache_labels:
            self.labels[device] = labels
            self.prev_num_logits = num_logits
        return labels

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits per image and per text, whole: for callers that want them (distillation, evaluation)."""
        images, texts = image_features, text_features
        all_images, all_texts = images, texts
        if self.world_size > 1:
            all_images, all_texts = (
                _gathering.gather(x, self.local_loss, self.gather_with_grad, self.world_size)
                for x in (images, texts)
            )
        if self.local_loss or self.world_size == 1:
            per_image = logit_scale * images @ all_texts.T
            per_text = logit_scale * texts @ all_images.T
        else:
            per_image = logit_scale * all_images @ all_texts.T
            per_text = per_image.T
        if logit_bias is None:
            return per_image, per_text
        return per_image + logit_bias, per_text + logit_bias

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Compute the loss of image_features (B, D) and text_features (B, D), pair by pair; {"contrastive_loss": it} on demand."""
        # `self` may be open_clip's own class: only what both have is used.
        scale = _scalar(logit_scale, image_features)
        bias = None if logit_bias is None else _scalar(logit_bias, image_features)
        reason = _why_not("info_nce", image_features, scale, bias)
        if not reason and getattr(self, "use_horovod", False) and self.world_size > 1:
            reason = "ranks are gathered by Horovod"
        if reason:
            _fallback.say("ClipLoss", reason)
            loss = _from_logits(self, image_features, text_features, logit_scale, logit_bias)
        elif self.world_size > 1:
            loss = _gathering.clip_loss(
                image_features,
                text_features,
                scale,
                bias,
                self.local_loss,
                self.gather_with_grad,
                self.world_size,
            )
        else:
            loss = _fallback.twice(
                "ClipLoss",
                lambda image, text, scale, *bias: info_nce(
                    image, text, scale, logit_bias=bias[0] if bias else None
                ),
                partial(_from_logits, self),
                *(x for x in (image_features, text_features, scale, bias) if x is not None),
            )
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """`open_clip.loss.SigLipLoss`: the sigmoid loss, on `cfmvit.ops.siglip_loss`.

    Every `dist_impl` has the same value and gradients, so all are computed alike, by one gather of the texts; `chunk_size`
    bounds what the original holds of the logits, and is not needed here.

    Raises:
        AssertionError: dist_impl is unknown.
        ValueError, TypeError: features, logit_scale or logit_bias break the rules of `cfmvit.ops.siglip_loss`.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or "bidir"
        self.chunk_size = chunk_size
        known = ("bidir", "shift", "reduce", "gather")
        if self.dist_impl not in known:
            raise AssertionError(f"SigLipLoss: dist_impl must be one of {known}, got {dist_impl!r}")
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:
        """Labels (num_logits, num_logits): 1 for a pair, -1 elsewhere; all -1 between the images and texts of two ranks."""
        labels = -torch.ones(num_logits, num_logits, device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> Tensor:
        """Logits (B, B) of this rank's images and the texts given."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Compute the loss of image_features (B, D) and text_features (B, D), pair by pair; {"contrastive_loss": it} on demand."""
        scale = _scalar(logit_scale, image_features)
        bias = None if logit_bias is None else _scalar(logit_bias, image_features)
        group = _gathering.whole_world(self.world_size) if self.world_size > 1 else None
        reason = _why_not("sigmoid_loss", image_features, scale, bias)
        if group is not None:
            loss = siglip_loss(image_features, text_features, scale, bias, process_group=group)
        elif reason:
            _fallback.say("SigLipLoss", reason)
            loss = _from_signs(self, image_features, text_features, logit_scale, logit_bias)
        else:
            loss = _fallback.twice(
                "SigLipLoss",
                siglip_loss,
                partial(_from_signs, self),
                *(x for x in (image_features, text_features, scale, bias) if x is not None),
            )
        return {"contrastive_loss": loss} if output_dict else loss


def install() -> Patch:
    """Make every `ClipLoss` and `SigLipLoss` of open_clip, made already or later, compute as the classes above do.

    Returns:
        The patch: `.remove()` it, or use it in a `with` statement.

    Raises:
        ImportError: open_clip is not installed.
    """
    losses = require("open_clip.loss", package="open_clip_torch")
    return Patch(
        (getattr(losses, ours.__name__), "forward", ours.forward)
        for ours in (ClipLoss, SigLipLoss)
        if hasattr(losses, ours.__name__)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run open_clip's training, `open_clip_train.main`, on the losses above.

    Args:
        arguments: its command line; the process's own by default.

    Raises:
        ImportError: open_clip's training is not installed.
    """
    training = require("open_clip_train.main", package="open_clip_torch[training]")
    with install():
        training.main(sys.argv[1:] if arguments is None else arguments)


def _from_logits(
    loss: ClipLoss, image: Tensor, text: Tensor, scale: Tensor | float, bias: Tensor | None = None
) -> Tensor:
    """The original's way: two cross-entropies of logits."""
    given = () if bias is None else (bias,)  # older versions take none
    per_image, per_text = loss.get_logits(image, text, scale, *given)
    labels = loss.get_ground_truth(image.device, per_image.shape[0])
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


def _from_signs(
    loss: SigLipLoss, image: Tensor, text: Tensor, scale: Tensor | float, bias: Tensor | float | None = None
) -> Tensor:
    """The original's way: a sigmoid of every logit."""
    signs = loss.get_ground_truth(image.device, image.dtype, len(image))
    return -F.logsigmoid(signs * loss.get_logits(image, text, scale, bias)).sum() / len(image)


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """`value` as the 0-d tensor that the ops take; open_clip's may be a number or have one element."""
    if not isinstance(value, Tensor):
        return torch.tensor(float(value), device=like.device)
    return value.reshape(()) if value.numel() == 1 else value


def _why_not(op: str, features: Tensor, *scalars: Tensor | None) -> str:
    """Say why the op can't take such input; empty where it can, or where the op is to reject it."""
    if any(x is not None and x.dim() for x in scalars):
        return "logit_scale and logit_bias of more than one element"
    return why_not_triton(features) if features.is_cuda else _fallback.why_not(op, features)


if __name__ == "__main__":
    main()
