"""Weights, gradients and optimizer state in shards, a part on each rank (PyTorch's FSDP2), where a device can't hold them whole."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cfmvit.training.world import World


def shard(module: nn.Module, blocks: Iterable[nn.Module], world: World) -> None:
    """Shard a module's weights over ranks; alone, leave it as it is.

    What its blocks have is gathered while each runs, the rest while ``module`` does. Scalars stay whole on every rank
    (``average_scalars``). Only calls of ``module`` find weights to compute with, and every rank must make the same ones; what is not
    training takes a plain copy, whose weights ``gathered`` fetches.
    """
    if world.group is None:
        return
    mesh = DeviceMesh.from_group(world.group, world.device.type)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params=set(_scalars(module)))


def average_scalars(module: nn.Module, world: World) -> None:
    """Make the gradients of scalars the mean over ranks, as those of what is sharded become by themselves."""
    if isinstance(module, FSDPModule):
        for scalar in _scalars(module):
            if scalar.grad is not None:
                dist.all_reduce(scalar.grad, group=world.group)
                scalar.grad /= world.size


def is_sharded(module: nn.Module) -> bool:
    """Tell whether a module's weights are in shards."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def gathered(value: Tensor) -> Tensor:
    """Return a tensor as a whole; every rank must ask for it."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def sharded_like(value: Tensor, other: Tensor) -> Tensor:
    """Return this rank's part of what every rank has whole, where ``other`` is in shards; nothing travels."""
    if isinstance(other, DTensor) and value.ndim:
        whole = value.to(other.device)
        return distribute_tensor(whole, other.device_mesh, other.placements, src_data_rank=None)
    return value


def clip_gradients(weights: list[Tensor], most: float | None) -> float:
    """Scale gradients so that the norm of all, of all ranks' shards, is ``most`` at most; return what it was."""
    bound = math.inf if most is None else most
    parts = [part for part in _by_kind(weights) if part]
    if len(parts) == 1:
        return float(gathered(nn.utils.clip_grad_norm_(parts[0], bound)))
    norms = [
        gathered(nn.utils.get_total_norm([w.grad for w in part if w.grad is not None])) for part in parts
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for part in parts:
        nn.utils.clip_grads_with_norm_(part, bound, norm)
    return float(norm)


def _by_kind(weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Part what is sharded from what is whole: no operation takes both."""
    return [w for w in weights if isinstance(w, DTensor)], [w for w in weights if not isinstance(w, DTensor)]


def _scalars(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.ndim == 0]
