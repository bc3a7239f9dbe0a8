"""FLOPs by formula are those that torch counts as it goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfmvit.models import create_model, model_config
from cfmvit.ops import linear_masked_cosine_loss
from cfmvit.pretrain import objective
from cfmvit.pretrain.flops import flops

BATCH, LENGTH = 4, 11


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"contrastive_input": "full"},
        {"reconstruction_target": "values"},
        {"reconstruction_target": "values", "contrastive_input": "full"},
        {"reconstruction": "pixel", "mask_ratio": 0.6, "reconstruction_target": "values"},
        {"reconstruction": "none"},
        {"reconstruction": "none", "contrastive_input": "full", "text_width": 96},
    ],
    ids=str,
)
def test_flops_are_those_that_torch_counts(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("cfm_vit_tiny", vocab_size=300, **options)
    # torch counts ATen's ops: the fused one is a projection and its gradient.
    monkeypatch.setattr(
        objective,
        "linear_masked_cosine_loss",
        lambda *arguments: linear_masked_cosine_loss(*arguments, impl="reference"),
    )
    images = torch.randint(0, 256, (BATCH, 3, 64, 64), dtype=torch.uint8)
    ids = torch.randint(1, 300, (BATCH, LENGTH))
    branches = objective.Branches(model)
    draws = objective.draw(model, (64, 64), BATCH, torch.device("cpu"), None)
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        embedded = branches(images, ids, draws)
    loss = embedded.image.sum() + embedded.text.sum()
    if embedded.reconstruction is not None:
        loss = loss + embedded.reconstruction
    with FlopCounterMode(display=False) as backward, sdpa_kernel(SDPBackend.MATH):
        loss.backward()
    counted = flops(model.config, LENGTH)
    assert forward.get_total_flops() == BATCH * counted.forward
    assert forward.get_total_flops() + backward.get_total_flops() == BATCH * counted.training


def test_the_papers_figures() -> None:
    """Multiply-adds of the image tower: 17.5 G of ViT-B/16 and 61.2 G of ViT-L/16, and how many times as many with reconstruction."""
    for name, alone, full, complementary in (("b16", 17.5, 1.32, 1.06), ("l16", 61.2, 1.27, 1.01)):
        made = {
            kind: flops(model_config(f"cfm_vit_{name}", **options), 64)
            for kind, options in {
                "alone": {"reconstruction": "none", "contrastive_input": "full"},
                "full": {"contrastive_input": "full"},
                "complementary": {},
            }.items()
        }
        of_image = {kind: count.forward - count.text for kind, count in made.items()}
        assert of_image["alone"] / 2e9 == pytest.approx(alone, rel=0.03)
        assert of_image["full"] / of_image["alone"] == pytest.approx(full, abs=0.06)
        assert of_image["complementary"] / of_image["alone"] == pytest.approx(complementary, abs=0.06)
