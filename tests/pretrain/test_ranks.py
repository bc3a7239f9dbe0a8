"""A batch that is spread over processes and pieces: the loss, the gradient and the data order are those of one process."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from cfmvit.models import CFMViT, create_model
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.training import NonFiniteLossError, World
from cfmvit.training.sharding import clip_gradients, gathered
from tests.processes import run_ranks

CPU = torch.device("cpu")
BATCH = 16


def make(frozen: str = "", **options: Any) -> CFMViT:
    torch.manual_seed(0)
    small = {"width": 32, "heads": 2, "depth": 2, "text_width": 32, "text_heads": 2, "decoder_width": 32}
    model = create_model("cfm_vit_tiny", vocab_size=300, pos_embed="learned", **{**small, **options})
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    return model


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (BATCH, 3, 64, 64), generator=generator, dtype=torch.uint8),
        "texts": torch.randint(1, 300, (BATCH, 6), generator=generator),
        "keys": [f"sample-{number}" for number in range(BATCH)],
    }


def part(whole: dict[str, Any], first: int, count: int) -> dict[str, Any]:
    return {name: value[first : first + count] for name, value in whole.items()}


Found = tuple[dict[str, float], list[Tensor | None]]


def gradients(world: World, pieces: int, sharded: bool = False, **options: Any) -> Found:
    """Losses, mean over ranks, and the gradient of every weight."""
    model, size = make(**options), BATCH // (world.size * pieces)
    parts = [part(batch(), (world.rank * pieces + piece) * size, size) for piece in range(pieces)]
    step = ContrastiveGradients(model, world, 2.0, sharded=sharded)
    found = step(parts, torch.Generator().manual_seed(7))
    means = world.mean(torch.stack([value.double() for value in found.values()])).tolist()
    return dict(zip(found, means, strict=True)), [
        None if p.grad is None else gathered(p.grad) for p in model.parameters()
    ]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"frozen": "visual"},
    {"frozen": "text"},
    {"reconstruction": "none", "ped_granularity": "batch"},
    {"reconstruction": "pixel", "contrastive_input": "full"},
    {"reconstruction_target": "values"},
]


def assert_same(found: Found, whole: Found) -> None:
    (means, grads), (losses, expected) = found, whole
    assert means.keys() == losses.keys()
    for name, value in losses.items():
        assert means[name] == pytest.approx(value, rel=1e-5), name
    for mine, other in zip(grads, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert (mine - other).norm() <= 1e-5 * max(1.0, other.norm())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pieces_are_the_whole_batch(options: dict[str, Any]) -> None:
    assert_same(gradients(World(CPU), 4, **options), gradients(World(CPU), 1, **options))


@pytest.mark.parametrize("options", [OPTIONS[0], *OPTIONS[-2:]], ids=str)
def test_pieces_in_bfloat16_leave_no_weight_without_a_gradient(options: dict[str, Any]) -> None:
    """What autocast keeps of a weight in the pass without graphs must not serve the one with them."""
    _, exact = gradients(World(CPU), 1, **options)
    for pieces in (1, 4):
        with torch.autocast("cpu", torch.bfloat16):
            _, found = gradients(World(CPU), pieces, **options)
        assert all(grad is not None for grad in found)
        error = sum(((a - b) ** 2).sum() for a, b in zip(found, exact, strict=True)).sqrt()
        assert error < 0.1 * sum((b**2).sum() for b in exact).sqrt()


def test_pieces_of_one_are_not_plain_accumulation() -> None:
    """The gradient is that of 16 candidates; that of four times four is another one."""
    _, whole = gradients(World(CPU), 1)
    model = make()
    four = ContrastiveGradients(model, World(CPU), 2.0)
    for piece in range(4):
        four([part(batch(), 4 * piece, 4)], torch.Generator().manual_seed(7))
    other = [p.grad / 4 for p in model.parameters()]
    assert max((a - b).norm() / b.norm() for a, b in zip(other, whole, strict=True)) > 0.1


def _join(rank: int, world: int, store: str) -> World:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=300)
    )
    return World(CPU, dist.group.WORLD)


def _same(rank: int, size: int, store: str) -> None:
    world = _join(rank, size, store)
    for number, options in enumerate(OPTIONS):
        whole = gradients(World(CPU), 1, **options)
        for pieces in (1, 2):
            assert_same(gradients(world, pieces, **options), whole)
        if number < 2:
            assert_same(gradients(world, 2, sharded=True, **options), whole)
    _same_in_bfloat16(world)
    _clip(world)
    dist.destroy_process_group()


def _same_in_bfloat16(world: World) -> None:
    """To its rounding: autocast keeps copies of weights from pass to pass, but not of those that have been freed since."""
    for pieces in (1, 2):
        with torch.autocast("cpu", torch.bfloat16):
            losses, whole = gradients(world, pieces)
            found, parts = gradients(world, pieces, sharded=True)
        assert found == pytest.approx(losses, rel=1e-5)
        for mine, other in zip(parts, whole, strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or (mine - other).norm() <= 0.02 * max(1.0, other.norm())


def _held(weight: Tensor) -> int:
    return (weight.to_local() if isinstance(weight, DTensor) else weight).numel()


def _clip(world: World) -> None:
    """Shards and scalars beside them are scaled by the norm of all."""
    found = []
    for where, sharded in ((World(CPU), False), (world, True)):
        model, size = make(), BATCH // where.size
        count = sum(p.numel() for p in model.parameters())
        step = ContrastiveGradients(model, where, 2.0, sharded=sharded)
        assert 0.9 * count / where.size < sum(map(_held, model.parameters())) < 1.1 * count / where.size
        step([part(batch(), where.rank * size, size)], torch.Generator().manual_seed(7))
        norm = clip_gradients(list(model.parameters()), 0.1)
        found.append((norm, [gathered(p.grad) for p in model.parameters() if p.grad is not None]))
    (norm, expected), (mine, grads) = found
    assert mine == pytest.approx(norm, rel=1e-5) and norm > 0.1
    assert max((a - b).norm() for a, b in zip(grads, expected, strict=True)) < 1e-5


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_are_the_whole_batch(size: int, tmp_path: Path) -> None:
    run_ranks(_same, size, str(tmp_path / "store"))


def _poisoned(rank: int, size: int, store: str) -> None:
    world = _join(rank, size, store)
    for pieces in (1, 2):
        mine = part(batch(), 8 * rank, 8)
        mine["images"] = mine["images"].float() / 255
        if rank == 1:
            mine["images"][3] = torch.nan
        with pytest.raises(NonFiniteLossError, match=r"an embedding is not finite.*'sample-11'") as caught:
            parts = [part(mine, piece * 8 // pieces, 8 // pieces) for piece in range(pieces)]
            ContrastiveGradients(make(), world, 2.0)(parts, torch.Generator().manual_seed(7))
        assert "sample-0'" not in str(caught.value) and str(caught.value).startswith("rank 1: ")
    dist.destroy_process_group()


def test_a_rank_with_a_nan_stops_all_with_its_keys(tmp_path: Path) -> None:
    run_ranks(_poisoned, 2, str(tmp_path / "store"))
