"""How the texts of all ranks come to this one, block by block, and how their gradients go back.

Both ways start with the own texts, so that the first transfer hides behind their block of logits:

- Gather: one all-gather, then at most two blocks (the ranks before and those after this one); gradients go back by one
  reduce-scatter, which hides behind the own block. Every rank holds all W b texts and, in the backward, their gradient.
- Ring: W - 1 hops, each hiding behind the block before it; gradients travel along and come home complete. Every rank holds two
  blocks of b texts and of gradients, and every link carries each block once.

Sums are in float32 (float64 for float64 features), in an order that the ranks alone decide.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from cfmvit.ops.contrastive import collectives

# Gathered texts and their gradient beyond this go round in a ring.
GATHER_BYTES = 2 * 2**30


class Block(NamedTuple):
    """Texts of one or more ranks."""

    text: Tensor  # (n, D)
    columns: slice  # which of the texts of all ranks they are
    label_offset: int | None  # 0 for the own texts, None for those of others


def choose(exchange: str | None, text: Tensor, group: dist.ProcessGroup) -> str:
    """Take the ring across nodes, where links are slow, and for what is too large to hold; the gather elsewhere."""
    if exchange is not None:
        return exchange
    world = dist.get_world_size(group)
    across_nodes = world > int(os.environ.get("LOCAL_WORLD_SIZE", world))
    gathered = world * text.numel() * (text.element_size() + 4)
    return "ring" if across_nodes or gathered > GATHER_BYTES else "gather"


class Gather:
    """All texts on every rank; `kept` (W * b, D) is what a backward needs."""

    text: Tensor
    arriving: Any

    def __init__(self, kept: Tensor, group: dist.ProcessGroup):
        self.kept, self.group = kept, group
        rows = len(kept) // dist.get_world_size(group)
        self.own = slice(dist.get_rank(group) * rows, (dist.get_rank(group) + 1) * rows)

    @classmethod
    def start(cls, text: Tensor, group: dist.ProcessGroup) -> Gather:
        """Send the own texts (b, D) on their way."""
        gather = cls(text.new_empty(dist.get_world_size(group) * text.shape[0], text.shape[1]), group)
        gather.text = text
        gather.arriving = collectives.all_gather(gather.kept, text, group, async_op=True)
        return gather

    def blocks(self) -> Iterator[Block]:
        """Yield the own texts while those of the others arrive, then those. Only after `start`."""
        yield Block(self.text, self.own, 0)
        self.arriving.wait()
        yield from self._others()

    def scatter(self, gradient_of: Callable[[Block], Tensor], needed: bool) -> Tensor | None:
        """Call gradient_of(block), (n, D), for every block; if needed, sum those of the own texts, (b, D), over ranks."""
        own = Block(self.kept[self.own], self.own, 0)
        grads = [(block.columns, gradient_of(block)) for block in self._others()]
        if not (needed and grads):
            grad = gradient_of(own)
            return grad if needed else None
        sums = grads[0][1].new_empty(self.kept.shape)
        sums[self.own] = 0
        for columns, grad in grads:
            sums[columns] = grad
        del grads, grad
        out = sums.new_empty(own.text.shape)
        returning: Any = collectives.reduce_scatter(out, sums, dist.ReduceOp.SUM, self.group, async_op=True)
        grad = gradient_of(own)
        returning.wait()
        return out.add_(grad)

    def _others(self) -> Iterator[Block]:
        for columns in (slice(0, self.own.start), slice(self.own.stop, len(self.kept))):
            if columns.start < columns.stop:
                yield Block(self.kept[columns], columns, None)


class Ring:
    """Two blocks of texts on every rank; `kept` (b, D) is what a backward needs."""

    def __init__(self, kept: Tensor, group: dist.ProcessGroup):
        self.kept, self.group = kept, group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    @classmethod
    def start(cls, text: Tensor, group: dist.ProcessGroup) -> Ring:
        """Begin with the own texts (b, D)."""
        return cls(text, group)

    def blocks(self) -> Iterator[Block]:
        """Yield the own texts, those of the next rank, and so on, each while the following ones arrive."""
        text, rows = self.kept, len(self.kept)
        for hop in range(self.world):
            passing = None if hop == self.world - 1 else _Passing(text, self)
            first = (self.rank + hop) % self.world * rows
            yield Block(text, slice(first, first + rows), None if hop else 0)
            if passing is not None:
                text = passing.wait()

    def scatter(self, gradient_of: Callable[[Block], Tensor], needed: bool) -> Tensor | None:
        """Do what `Gather.scatter` does."""
        own: Tensor | None = None
        passing: _Passing | None = None
        for block in self.blocks():
            grad = gradient_of(block)
            if not needed:
                continue
            if block.label_offset == 0:
                own = grad
                continue
            if passing is not None:  # brings the sum of the ranks between the block's own and this one
                grad = passing.wait().add_(grad)
            passing = _Passing(grad, self)
        return own if passing is None or own is None else passing.wait().add_(own)


class _Passing:
    """A tensor on its way to the rank before this one, and another on its way from the rank after it."""

    def __init__(self, mine: Tensor, ring: Ring):
        self.mine, self.theirs = mine, torch.empty_like(mine)  # both must live until the transfer ends
        self.works = dist.batch_isend_irecv(
            [
                dist.P2POp(op, x, group=ring.group, group_peer=(ring.rank + step) % ring.world)
                for op, x, step in ((dist.isend, mine, -1), (dist.irecv, self.theirs, 1))
            ]
        )

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.theirs


EXCHANGES: dict[str, type[Gather] | type[Ring]] = {"gather": Gather, "ring": Ring}
