"""The objective: which patches each branch sees, what it costs, and that the loss is the paper's sum."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit.models import CFMViT, create_model
from cfmvit.ops import random_masking
from cfmvit.pretrain.objective import Draws, draw, pretraining_losses


def make(**options: Any) -> CFMViT:
    torch.manual_seed(0)
    small = {"width": 32, "heads": 2, "depth": 2, "text_width": 32, "text_heads": 2, "decoder_width": 32}
    return create_model("cfm_vit_tiny", vocab_size=300, **{**small, **options})


def batch(size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(size, 3, 64, 64, generator=generator), torch.randint(
        1, 300, (size, 6), generator=generator
    )


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def values(model: CFMViT, tokens: Tensor) -> Tensor:
    """Return tokens after the final LN that do not attend in the last block, (B, K, C)."""
    *others, last = model.visual.blocks
    for block in others:
        tokens = block(tokens)
    _, _, own = last.attn.qkv(last.norm1(tokens)).chunk(3, dim=-1)
    tokens = tokens + last.attn.proj(own)
    return model.visual.norm(tokens + last.mlp(last.norm2(tokens)))


def drawn(model: CFMViT, images: Tensor) -> Draws:
    return draw(model, images.shape[-2:], len(images), images.device, seeded())


@pytest.mark.parametrize("target", ["tokens", "values"])
def test_the_loss_and_its_gradient_are_the_papers(target: str) -> None:
    """InfoNCE plus twice the masked cosine, the target a constant: written out in plain PyTorch, from the same draws."""
    model = make(reconstruction_target=target)
    images, ids = batch()
    losses = pretraining_losses(model, images, ids, seeded())
    keep_pos, noise = drawn(model, images)
    masking = random_masking(3, 64, 0.75, noise=noise)
    tokens = model.visual.patch_embed.proj(images).flatten(2).transpose(1, 2)
    tokens = tokens + keep_pos[:, None, None] * model.visual.pos_embed
    rows = torch.arange(3)[:, None]
    features = model.visual.encode(tokens[rows, masking.masked.long()])
    image = F.normalize(features.mean(1), dim=-1)
    logits = image @ model.encode_text(ids).T * model.logit_scale.exp()
    labels = torch.arange(3)
    contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    decoder = model.decoder
    hidden = decoder.mask_token.expand(3, 64, -1).clone()
    hidden[rows, masking.keep.long()] = decoder.embed(model.visual.encode(tokens[rows, masking.keep.long()]))
    hidden = hidden + decoder.pos_embed
    for block in decoder.blocks:
        hidden = block(hidden)
    predicted = decoder.proj(decoder.norm(hidden))[rows, masking.masked.long()]
    wanted = features if target == "tokens" else values(model, tokens[rows, masking.masked.long()])
    reconstruction = (1 - F.cosine_similarity(predicted, wanted.detach(), dim=-1)).mean()
    torch.testing.assert_close(losses["contrastive"], contrastive, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["reconstruction"], reconstruction, atol=1e-5, rtol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(contrastive + 2 * reconstruction, parameters)
    for ours, theirs in zip(torch.autograd.grad(losses["loss"], parameters), expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("reconstruction", "contrastive_input"),
    list(itertools.product(["feature", "pixel", "none"], ["complementary", "full"])),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_every_option_trains_every_weight_it_uses(
    reconstruction: str, contrastive_input: str, dtype: torch.dtype
) -> None:
    model = make(reconstruction=reconstruction, contrastive_input=contrastive_input, pos_embed="learned")
    images, ids = batch()
    images = images if dtype == torch.float32 else (images * 255).to(torch.uint8)
    losses = pretraining_losses(model, images, ids, seeded())
    losses["loss"].backward()
    assert ("reconstruction" in losses) == (reconstruction != "none")
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unused == []


def test_each_patch_is_embedded_once_and_none_that_no_branch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    from cfmvit.models import vision

    real, seen = vision.gather_patches, []

    def spy(images: Tensor, index: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(index.sort(dim=1).values.tolist())
        return real(images, index, *rest, **options)

    monkeypatch.setattr(vision, "gather_patches", spy)
    images, ids = batch()
    for options, patches in (
        ({"contrastive_input": "complementary"}, 64),
        ({"contrastive_input": "full"}, 64),
        ({"contrastive_input": "complementary", "reconstruction": "none"}, 48),
    ):
        seen.clear()
        pretraining_losses(make(**options), images, ids, seeded())
        assert len(seen) == 1
        for row in seen[0]:
            assert len(row) == patches and len(set(row)) == patches


def test_complementary_branches_share_no_pixel() -> None:
    """Changing the visible patches must not move the image embedding, so the contrastive loss stays the same."""
    model = make(ped_prob=0.0)
    images, ids = batch()
    masking = random_masking(3, 64, 0.75, noise=drawn(model, images).noise)
    changed = images.clone().reshape(3, 3, 8, 8, 8, 8)
    for sample, tokens in enumerate(masking.keep.tolist()):
        for token in tokens:
            changed[sample, :, token // 8, :, token % 8] = 0.5
    before = pretraining_losses(model, images, ids, seeded())
    after = pretraining_losses(model, changed.reshape_as(images), ids, seeded())
    assert torch.equal(before["contrastive"], after["contrastive"])
    assert not torch.isclose(before["reconstruction"], after["reconstruction"])


def test_ped_drops_the_whole_embedding_per_sample() -> None:
    model = make(ped_prob=0.5)
    images = torch.zeros(400, 3, 64, 64)
    keep_pos = drawn(model, images).keep_pos
    assert keep_pos.shape == (400,) and 150 < keep_pos.sum() < 250
    together = drawn(make(ped_granularity="batch"), images).keep_pos
    assert together.shape == (400,) and together.unique().numel() == 1
    images, ids = batch()
    always, moved = make(ped_prob=1.0, pos_embed="learned"), make(ped_prob=1.0, pos_embed="learned")
    with torch.no_grad():
        moved.visual.pos_embed.add_(1.0)
    a, b = (pretraining_losses(m, images, ids, seeded())["loss"] for m in (always, moved))
    assert torch.equal(a, b)


def test_the_logit_scale_is_held_at_its_maximum() -> None:
    model = make()
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    images, ids = batch()
    assert pretraining_losses(model, images, ids, seeded())["logit_scale"].item() == pytest.approx(100.0)
