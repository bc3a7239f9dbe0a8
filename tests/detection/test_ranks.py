"""A batch of detection that is spread over processes has the losses and gradients of one process."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from cfmvit.detection import Detector
from cfmvit.training import MeanGradients, World
from cfmvit.training.gradients import data_parallel
from tests.processes import run_ranks

from .small_detector import LABELS, small_config, small_model, squares_batch

CPU = torch.device("cpu")


class Losses(nn.Module):
    def __init__(self, world: World, frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.detector = Detector(
            small_model(), small_config(base_labels=LABELS, freeze_backbone=frozen)
        ).train()
        self.world = world

    def forward(self, batch: dict[str, Any], generators: list[torch.Generator]) -> dict[str, Tensor]:
        text = self.detector.vocabulary(LABELS).embeddings
        return self.detector.losses(batch, text, generators, self.world)


def gradients(world: World, frozen: bool) -> tuple[dict[str, float], dict[str, Tensor | None]]:
    """Four images with other numbers of objects, one of them without any; mean losses and all gradients."""
    pairs = [squares_batch(), squares_batch()]
    batch = {name: [*pairs[0][name], *pairs[1][name]] for name in pairs[0]}
    for name in ("boxes", "labels", "masks"):
        batch[name][1], batch[name][3] = batch[name][1][:1], batch[name][3][:0]
    size = 4 // world.size
    mine = {name: value[world.rank * size : (world.rank + 1) * size] for name, value in batch.items()}
    mine["images"] = torch.stack(mine["images"])
    mine["keys"] = [f"image-{number}" for number in range(size)]
    losses = Losses(world, frozen)
    found = MeanGradients(data_parallel(losses, world, some_unused=True), world)(
        [mine], torch.Generator().manual_seed(3)
    )
    means = world.mean(torch.stack([value.double() for value in found.values()])).tolist()
    return dict(zip(found, means, strict=True)), {n: p.grad for n, p in losses.named_parameters()}


def _same(rank: int, size: int, store: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=300)
    )
    world = World(CPU, dist.group.WORLD)
    for frozen in (False, True):
        losses, expected = gradients(World(CPU), frozen)
        found, grads = gradients(world, frozen)
        assert found == pytest.approx(losses, rel=1e-5)
        for name, other in expected.items():
            mine = grads[name]
            assert (mine is None) == (other is None), name
            if mine is not None and other is not None:
                assert (mine - other).norm() <= 1e-5 * max(1.0, other.norm()), name
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_are_the_whole_batch(size: int, tmp_path: Path) -> None:
    run_ranks(_same, size, str(tmp_path / "store"))
