"""Collectives for losses over a batch that is spread over ranks, most of them with gradients.

Convention: the loss of the whole batch is the mean of the ranks' losses, and every gradient given back is the one of their
*sum*, so that the mean over ranks that DistributedDataParallel takes of parameter gradients is the true gradient.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch import distributed as dist

# By the names that newer versions have for them, and warn without.
all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(
    dist, "reduce_scatter_tensor", None
)
_host_groups: WeakKeyDictionary[dist.ProcessGroup, Any] = WeakKeyDictionary()


def check_group(op: str, group: object) -> None:
    """Raise unless `group` is a process group that this process can use."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"{op}: process_group must belong to an initialised torch.distributed, got {group!r}"
        )
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise ValueError(f"{op}: process_group must be a group that holds this rank, got {group!r}")


def check_alike(op: str, group: dist.ProcessGroup, **facts: int | tuple[int, ...]) -> None:
    """Raise, on every rank alike, unless all ranks come with the same facts; call it before collectives that depend on them.

    Ranks talk through the CPU: a look at a GPU's memory would stop the host until the GPU is idle, and can't be captured in a
    graph. A rank that never comes makes the others raise after the group's timeout.
    """
    if torch.compiler.is_compiling():
        return
    flat = [n for fact in facts.values() for n in (fact if isinstance(fact, tuple) else (fact,))]
    ranks = _gather(torch.tensor(flat, device="cpu"), host_group(group)).view(-1, len(flat)).tolist()
    at = 0
    for name, fact in facts.items():
        end = at + len(fact) if isinstance(fact, tuple) else at + 1
        seen = [tuple(rank[at:end]) for rank in ranks]
        if any(value != seen[0] for value in seen):
            values = seen if isinstance(fact, tuple) else [value[0] for value in seen]
            raise ValueError(f"{op}: {name} must be the same on every rank of process_group, got {values}")
        at = end


def gather_rows(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Concatenate the rows (b, ...) of all ranks in rank order: (W * b, ...). Differentiable; sums in float32 or better."""
    return _GatherRows.apply(rows, group)


def mean(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Mean over ranks of x, the same on all; x itself without a group. Differentiable."""
    return x if group is None else _Mean.apply(x, group)


def exchange(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send row r of (W, ...) to rank r; row r of the result is what rank r sent. Without gradient."""
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    dist.all_to_all_single(out, rows.contiguous(), group=group)
    return out


def _gather(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(dist.get_world_size(group) * rows.shape[0], *rows.shape[1:])
    all_gather(out, rows.contiguous(), group)
    return out


def host_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Give a group of the same ranks that moves tensors of the CPU; made at most once for each group."""
    if "cpu:" in dist.get_backend_config(group):
        return group
    if group not in _host_groups:
        ranks = dist.get_process_group_ranks(group)
        _host_groups[group] = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return _host_groups[group]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather(rows, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        sums = grad.to(torch.promote_types(grad.dtype, torch.float32)).contiguous()
        out = sums.new_empty(grad.shape[0] // dist.get_world_size(ctx.group), *grad.shape[1:])
        reduce_scatter(out, sums, dist.ReduceOp.SUM, ctx.group)
        return out.to(grad.dtype), None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_mean(x, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_mean(grad, ctx.group), None


def _all_mean(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.detach().contiguous().clone()
    dist.all_reduce(x, dist.ReduceOp.SUM, group)
    return x / dist.get_world_size(group)
