"""Two and four ranks: the losses' values and gradients on each rank are open_clip's, for every way to gather."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from cfmvit.integrations import open_clip as ours

from ..processes import run_ranks

pytest.importorskip("open_clip")
ROWS = 9


def values(loss: nn.Module, rank: int, **options: Tensor) -> list[Tensor]:
    """Loss, gradients of both features, and the mean over ranks of that of logit_scale, which is all that training sees."""
    generator = torch.Generator().manual_seed(rank)
    pair = F.normalize(torch.randn(2, ROWS, 12, generator=generator, dtype=torch.float64), dim=-1)
    inputs = [x.requires_grad_() for x in (*pair, torch.tensor(9.0, dtype=torch.float64))]
    found = loss(*inputs, **options)
    found.backward()
    dist.all_reduce(inputs[2].grad)
    return [found.detach(), *(x.grad for x in inputs)]


def assert_same(rank: int, mine: nn.Module, other: nn.Module, **options: Tensor) -> None:
    for found, expected in zip(values(mine, rank, **options), values(other, rank, **options), strict=True):
        torch.testing.assert_close(found, expected)


def compare(rank: int, world: int) -> None:
    from open_clip import loss as theirs

    place = {"rank": rank, "world_size": world}
    for local, with_grad in product((False, True), repeat=2):
        options = dict(place, local_loss=local, gather_with_grad=with_grad)
        mine, other = ours.ClipLoss(**options), theirs.ClipLoss(**options)
        assert_same(rank, mine, other)
        images = torch.ones(ROWS, 12).double() * rank
        logits = (loss.get_logits(images, images + 1, 2.0) for loss in (mine, other))
        assert all(torch.equal(a, b) for a, b in zip(*logits, strict=True))
    for implementation in ("bidir", "shift", "reduce", "gather"):
        options = dict(place, dist_impl=implementation)
        bias = torch.tensor(-4.0, dtype=torch.float64)
        assert_same(rank, ours.SigLipLoss(**options), theirs.SigLipLoss(**options), logit_bias=bias)
    with pytest.raises(ValueError, match=rf"number of ranks of torch\.distributed, got 3 with {world} ranks"):
        values(ours.ClipLoss(world_size=3), rank)


def uneven(rank: int, world: int) -> None:
    features, scale = torch.ones(3 + (rank == 1), 4), torch.tensor(9.0)
    for local, with_grad in product((False, True), repeat=2):
        loss = ours.ClipLoss(local_loss=local, gather_with_grad=with_grad, rank=rank, world_size=world)
        with pytest.raises(ValueError, match="must be the same on every rank"):
            loss(features, features, scale)


def _rank_main(rank: int, world: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    compare(rank, world)
    uneven(rank, world)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks(world: int, tmp_path: Path) -> None:
    run_ranks(_rank_main, world, str(tmp_path / "store"))
