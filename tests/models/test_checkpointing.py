"""Blocks that are computed again in the backward pass: the same gradients, for less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfmvit.models import create_model
from cfmvit.models.blocks import checkpoint_activations


def gradients(checkpointed: bool) -> tuple[int, list[Tensor]]:
    """Bytes that the graph keeps, and the gradients."""
    torch.manual_seed(0)
    model = create_model("cfm_vit_tiny", vocab_size=100)
    if checkpointed:
        checkpoint_activations(model)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    images, ids = torch.rand(2, 3, 64, 64), torch.arange(1, 9)[None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens = model.visual.forward_features(images, window=4, global_blocks=(5,))
        loss = tokens.square().sum() + model.encode_text(ids).sum()
    loss.backward()
    return kept, [p.grad for p in model.parameters() if p.grad is not None]


def test_the_gradients_stay_and_the_memory_does_not() -> None:
    (all_kept, expected), (few_kept, found) = gradients(False), gradients(True)
    assert few_kept < 0.25 * all_kept
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("training", [True, False])
def test_only_training_pays_for_it(training: bool) -> None:
    model = create_model("cfm_vit_tiny", vocab_size=100).train(training)
    checkpoint_activations(model.visual)
    calls = []
    model.visual.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    model.encode_image(torch.rand(1, 3, 64, 64)).sum().backward()
    assert len(calls) == 1 + training
