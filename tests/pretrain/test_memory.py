"""Memory by formula is what a step is measured to take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit.bench.memory import allocated_bytes
from cfmvit.models import create_model
from cfmvit.models.blocks import checkpoint_activations
from cfmvit.pretrain import objective
from cfmvit.pretrain.exchange import logits_memory
from cfmvit.pretrain.memory import activation_bytes

BATCH, LENGTH = 32, 20


@pytest.mark.parametrize(
    ("options", "checkpointed"),
    [({}, False), ({}, True), ({"contrastive_input": "full"}, False), ({"reconstruction": "none"}, True)],
    ids=str,
)
def test_activations_are_what_a_step_takes(options: dict[str, Any], checkpointed: bool) -> None:
    """Within 10 % of the peak of a forward and backward pass in float32."""
    model = create_model("cfm_vit_tiny", vocab_size=300, **options)
    if checkpointed:
        checkpoint_activations(model)
    images = torch.randint(0, 256, (BATCH, 3, 64, 64), dtype=torch.uint8)
    ids = torch.randint(1, 300, (BATCH, LENGTH))
    branches = objective.Branches(model)
    draws = objective.draw(model, (64, 64), BATCH, torch.device("cpu"), None)

    def step() -> None:
        embedded = branches(images, ids, draws)
        loss = embedded.image.sum() + embedded.text.sum()
        if embedded.reconstruction is not None:
            loss = loss + embedded.reconstruction
        loss.backward()
        model.zero_grad(set_to_none=True)

    step()
    found = activation_bytes(model.config, BATCH, LENGTH, "fp32", checkpointed=checkpointed)
    assert found == pytest.approx(allocated_bytes(step), rel=0.1)


def test_logits_are_what_open_clips_loss_takes() -> None:
    """One device of four: its rows against all columns, for either direction; or all rows, for both."""
    open_clip = pytest.importorskip("open_clip")
    batch, devices, width = 1024, 4, 8  # so narrow that features count for nothing
    image, text = (F.normalize(torch.randn(batch, width), dim=1).requires_grad_() for _ in range(2))
    own = [x[: batch // devices].detach().requires_grad_() for x in (image, text)]
    scale, labels = torch.tensor(10.0, requires_grad=True), torch.arange(batch)

    def logits_of(local: bool) -> list[Tensor]:
        if local:
            return [scale * rows @ columns.T for rows, columns in zip(own, (text, image))]
        logits = scale * image @ text.T
        return [logits, logits.T]

    def loss(local: bool) -> Tensor:
        """As in open_clip's, whose logits are gone when the backward pass begins."""
        both = logits_of(local)
        return sum(F.cross_entropy(logits, labels[: len(logits)]) for logits in both) / 2

    def local() -> None:
        loss(local=True).backward()

    def whole() -> None:
        loss(local=False).backward()

    def alone() -> None:
        open_clip.ClipLoss()(image, text, scale).backward()

    for run, expected in (
        (local, logits_memory(batch, devices, width, 4, local=True)),
        (whole, logits_memory(batch, devices, width, 4, local=False)),
        (alone, logits_memory(batch, 1, width, 4, local=True)),
    ):
        assert allocated_bytes(run) == pytest.approx(expected, rel=0.1), run.__name__
