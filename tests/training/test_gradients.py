"""Gradients of micro-batches: who draws what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cfmvit.training import MeanGradients, World

CPU = torch.device("cpu")


def drawn(rank: int, size: int, pieces: int) -> list[float]:
    """What each sample of a rank draws, in a batch of 8."""
    world, found = World(CPU), []
    world.rank, world.size = rank, size
    world.most = lambda value: value  # type: ignore[method-assign]  # no others are there to ask
    weight = nn.Parameter(torch.ones(()))

    def losses(batch: dict[str, list[str]], generators: list[torch.Generator]) -> dict[str, Tensor]:
        assert len(generators) == len(batch["keys"])
        found.extend(float(torch.rand((), generator=generator)) for generator in generators)
        return {"loss": weight * 1}

    part = {"keys": ["a"] * (8 // (size * pieces))}
    MeanGradients(losses, world)([part] * pieces, torch.Generator().manual_seed(3))
    return found


@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2])
def test_a_sample_draws_by_its_place_in_the_whole_batch(size: int, pieces: int) -> None:
    whole = drawn(0, 1, 1)
    assert len(set(whole)) == 8
    assert [value for rank in range(size) for value in drawn(rank, size, pieces)] == whole
