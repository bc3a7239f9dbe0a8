"""Every op as the whole of a checkpointed region: run twice, and what selective checkpointing asks for is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tests.ops.samples import Sample, public

SAMPLES = [sample for sample in public() if sample.op != "random_masking"]
POLICIES = {
    "plain": None,
    "recompute": lambda context, op, *args, **options: CheckpointPolicy.PREFER_RECOMPUTE,
    "save": lambda context, op, *args, **options: CheckpointPolicy.MUST_SAVE,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_a_region_runs_twice(sample: Sample, policy: str) -> None:
    runs = 0

    def region(*values: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        # The op comes last: the region is left from within it once all is there that the backward pass needs.
        out = sample.run(**dict(zip(sample.values, (x * 1 for x in values), strict=True)), **sample.indices)
        return out if isinstance(out, torch.Tensor) else out[0]

    context: Callable[[], Any] | None = POLICIES[policy]
    options = (
        {} if context is None else {"context_fn": partial(create_selective_checkpoint_contexts, context)}
    )
    leaves = [x.clone().requires_grad_() for x in sample.values.values()]
    found = torch.autograd.grad(checkpoint(region, *leaves, use_reentrant=False, **options).sum(), leaves)
    assert runs == 2
    expected = torch.autograd.grad(region(*leaves).sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
