"""Collectives with gradients, for losses over a batch that is spread over ranks.

Convention: the loss of the whole batch is the mean of the ranks' losses, and every gradient given back is the one of their
*sum*, so that the mean over ranks that DistributedDataParallel takes of parameter gradients is the true gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def check_group(op: str, group: object) -> None:
    """Raise unless `group` is a process group that this process can use."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"{op}: process_group must belong to an initialised torch.distributed, got {group!r}"
        )
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise ValueError(f"{op}: process_group must be a group that holds this rank, got {group!r}")


def check_shards(op: str, name: str, tensor: Tensor, group: dist.ProcessGroup) -> None:
    """Raise, on every rank alike, unless all ranks hold a matrix of the same shape."""
    mine = torch.tensor(tensor.shape, device=tensor.device)
    shapes = _gather(mine, group).view(-1, tensor.dim()).tolist()
    if any(shape != shapes[0] for shape in shapes):
        shapes = [tuple(shape) for shape in shapes]
        raise ValueError(
            f"{op}: {name} must have the same shape on every rank of process_group, got {shapes}"
        )


def gather_rows(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Concatenate the rows (b, ...) of all ranks in rank order: (W * b, ...). Differentiable; sums in float32 or better."""
    return _GatherRows.apply(rows, group)


def merge_lse(lse: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Log-sum-exp over ranks of (T,), the same on all. The ranks' gradients of one entry are summed. Differentiable."""
    return _MergeLse.apply(lse, group)


def all_max(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Elementwise maximum over ranks, without gradient."""
    x = x.detach().clone()
    dist.all_reduce(x, dist.ReduceOp.MAX, group)
    return x


def _gather(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(dist.get_world_size(group) * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(out, rows.contiguous(), group)
    return out


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather(rows, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        sums = grad.to(torch.promote_types(grad.dtype, torch.float32)).contiguous()
        out = sums.new_empty(grad.shape[0] // dist.get_world_size(ctx.group), *grad.shape[1:])
        dist.reduce_scatter_tensor(out, sums, dist.ReduceOp.SUM, ctx.group)
        return out.to(grad.dtype), None


class _MergeLse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lse: Tensor, group: dist.ProcessGroup) -> Tensor:
        largest = all_max(lse, group)
        shift = torch.where(largest == float("-inf"), 0, largest)
        total = (lse - shift).exp()
        dist.all_reduce(total, dist.ReduceOp.SUM, group)
        merged = shift + total.log()
        ctx.group = group
        ctx.save_for_backward(lse, torch.where(largest == float("-inf"), 0, merged))
        return merged

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        lse, merged = ctx.saved_tensors
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, dist.ReduceOp.SUM, ctx.group)
        return grad * (lse - merged).exp(), None
