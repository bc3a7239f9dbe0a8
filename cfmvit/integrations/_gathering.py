"""open_clip's four ways to spread a batch over W ranks, with its gradients.

A rank's feature gradients, before DistributedDataParallel takes the mean over ranks, with L the loss of the whole batch and L_r
that of the pairs of rank r (L is their mean):

| local_loss, gather_with_grad | loss | of features | of logit_scale |
|---|---|---|---|
| True, True | L_r | W dL | the ranks' own differ from dL_r, their mean does not |
| False, True | L | W dL | dL |
| False, False | L | dL | dL |
| True, False | L_r | dL_r, other ranks' features constant | dL_r |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from cfmvit.ops import info_nce
from cfmvit.ops.contrastive import collectives


def whole_world(world_size: int) -> dist.ProcessGroup:
    """Return the group of all ranks, which open_clip's losses always use.

    Raises:
        ValueError: torch.distributed is not initialised, or has another number of ranks.
    """
    running = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 0
    if running != world_size:
        found = f"{running} ranks" if running else "torch.distributed not initialised"
        raise ValueError(
            f"world_size must be the number of ranks of torch.distributed, got {world_size} with {found}"
        )
    group = dist.group.WORLD
    assert group is not None
    return group


def gather(features: Tensor, local_loss: bool, with_grad: bool, world_size: int) -> Tensor:
    """Concatenate features (B, D) of all ranks, (W * B, D), with the gradients that the two flags ask for."""
    group = whole_world(world_size)
    collectives.check_alike("gather", group, features=tuple(features.shape))
    if with_grad:
        return collectives.gather_rows(features, group)
    parts = [torch.empty_like(features, requires_grad=False) for _ in range(world_size)]
    dist.all_gather(parts, features.detach().contiguous(), group)
    if not local_loss:
        parts[dist.get_rank(group)] = features
    return torch.cat(parts)


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    local_loss: bool,
    with_grad: bool,
    world_size: int,
) -> Tensor:
    """Softmax contrastive loss of image (B, D), text (B, D) and those of the other ranks, as the table above says."""
    group = whole_world(world_size)
    if local_loss and not with_grad:
        first = dist.get_rank(group) * len(image)
        of_images, of_texts = (
            info_nce(
                own, gather(others, True, False, world_size), scale, logit_bias=bias,
                direction="image_to_text", label_offset=first,
            )
            for own, others in ((image, text), (text, image))
        )  # fmt: skip
        return (of_images + of_texts) / 2
    if not with_grad:
        image, text = (_Scaled.apply(x, 1 / world_size) for x in (image, text))
    if not local_loss:
        scale = _MeanGradient.apply(scale, group)
    loss = info_nce(image, text, scale, logit_bias=bias, process_group=group)
    return loss if local_loss else _Mean.apply(loss, group)


def _mean(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.detach().clone()
    dist.all_reduce(x, dist.ReduceOp.SUM, group)
    return x / dist.get_world_size(group)


class _Mean(torch.autograd.Function):
    """Mean over ranks of a loss whose gradients are already those of the whole."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _mean(loss, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _MeanGradient(torch.autograd.Function):
    """Identity with the mean over ranks of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _mean(grad, ctx.group), None


class _Scaled(torch.autograd.Function):
    """Identity with a gradient times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
