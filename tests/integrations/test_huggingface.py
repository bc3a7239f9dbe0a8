"""transformers' losses and masking: against the formulas, on stand-ins of its classes, and on transformers where it is installed."""

from __future__ import annotations

import inspect
import sys
from argparse import Namespace
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfmvit.integrations import huggingface as ours

from .masked_autoencoder import MaskedAutoencoderViT
from .parity import assert_same, run

GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def loss_of_similarity(similarity: Tensor) -> Tensor:
    labels = torch.arange(len(similarity))
    return (F.cross_entropy(similarity, labels) + F.cross_entropy(similarity.t(), labels)) / 2


@dataclass
class CLIPOutput:
    loss: Any = None
    logits_per_image: Any = None
    logits_per_text: Any = None
    text_embeds: Any = None
    image_embeds: Any = None
    text_model_output: Any = None
    vision_model_output: Any = None


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, **inputs: Any) -> Any:
        given = inputs.get("pixel_values", inputs.get("input_ids"))
        return Namespace(
            pooler_output=self.linear(given), inputs={k for k, v in inputs.items() if v is not None}
        )


class CLIPModel(nn.Module):
    """transformers' model with towers of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.text_model, self.vision_model = Tower(), Tower()
        self.text_projection, self.visual_projection = nn.Linear(5, 4), nn.Linear(5, 4)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(
        self, input_ids=None, pixel_values=None, attention_mask=None, position_ids=None, return_loss=None,
        output_attentions=None, return_dict=None,
    ):  # fmt: skip
        """As transformers'."""
        text = self.text_model(input_ids=input_ids, output_attentions=output_attentions)
        vision = self.vision_model(pixel_values=pixel_values)
        text_embeds = F.normalize(self.text_projection(text.pooler_output), dim=-1)
        image_embeds = F.normalize(self.visual_projection(vision.pooler_output), dim=-1)
        logits = text_embeds @ image_embeds.t() * self.logit_scale.exp()
        loss = loss_of_similarity(logits) if return_loss else None
        return CLIPOutput(loss, logits.t(), logits, text_embeds, image_embeds, text, vision)


class ViTMAEEmbeddings(nn.Module):
    config = Namespace(mask_ratio=0.6)

    def random_masking(self, sequence, noise=None):
        """As transformers'."""
        assert noise is None
        return MaskedAutoencoderViT.random_masking(self, sequence, self.config.mask_ratio)


class ViTMAEForPreTraining(nn.Module):
    config = Namespace(patch_size=4, num_channels=3, norm_pix_loss=True)

    def forward_loss(self, pixel_values, pred, mask, interpolate_pos_encoding=False):
        """As transformers'."""
        return MaskedAutoencoderViT(norm_pix_loss=True).forward_loss(pixel_values, pred, mask)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, members in (
        (ours._CLIP, (CLIPModel, CLIPOutput)),
        (ours._VIT_MAE, (ViTMAEEmbeddings, ViTMAEForPreTraining)),
    ):
        for package in ("transformers", "transformers.models", name.rpartition(".")[0]):
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
        module = ModuleType(name)
        vars(module).update({member.__name__: member for member in members})
        monkeypatch.setitem(sys.modules, name, module)


def test_clip_loss() -> None:
    text, image = (F.normalize(rand(9, 5), dim=-1) for _ in range(2))
    mine = run(ours.clip_loss, text, image, torch.tensor(7.0))
    other = run(
        lambda text, image, scale: loss_of_similarity(text @ image.t() * scale),
        text,
        image,
        torch.tensor(7.0),
    )
    assert_same(mine, other, torch.float32)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_low_precision(autocast: bool) -> None:
    embeds = [F.normalize(rand(9, 24), dim=-1).bfloat16() for _ in range(2)]
    imgs, pred, mask = rand(2, 3, 16, 16), rand(2, 16, 48).bfloat16(), (rand(2, 16) > 0).float()
    pair = [x.float() for x in embeds] if autocast else embeds
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        clip = ours.clip_loss(*pair, torch.tensor(7.0))
        pixels = ours.forward_loss(imgs, pred, mask, 4)
    assert clip.dtype == pixels.dtype == torch.float32
    exact = [x.double() for x in embeds]
    torch.testing.assert_close(clip.double(), loss_of_similarity(exact[0] @ exact[1].t() * 7.0))
    expected = MaskedAutoencoderViT(norm_pix_loss=False).forward_loss(imgs, pred.float(), mask)
    torch.testing.assert_close(pixels, expected)


def test_compile() -> None:
    embeds = [F.normalize(rand(9, 24), dim=-1).requires_grad_() for _ in range(2)]
    imgs, pred, mask = rand(2, 3, 16, 16), rand(2, 16, 48).requires_grad_(), (rand(2, 16) > 0).float()

    def losses(text: Tensor, image: Tensor, pred: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        kept, _, restore = ours.random_masking(pred, 0.75, noise)
        return (
            ours.clip_loss(text, image, torch.tensor(7.0)),
            ours.forward_loss(imgs, pred, mask, 4),
            kept,
            restore,
        )

    inputs = (*embeds, pred, torch.rand(2, 16, generator=GENERATOR))
    compiled = torch.compile(losses, backend="aot_eager", fullgraph=True)
    for mine, other in zip(compiled(*inputs), losses(*inputs), strict=True):
        torch.testing.assert_close(mine, other)


def test_masking_and_loss_of_rectangles() -> None:
    x, imgs, pred, mask = rand(2, 16, 5), rand(2, 3, 16, 8), rand(2, 8, 48), (rand(2, 8) > 0).float()
    torch.manual_seed(0)
    expected = MaskedAutoencoderViT.random_masking(None, x, 0.75)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(ours.random_masking(x, 0.75), expected, strict=True))
    noise = torch.rand(2, 16)
    kept, _, restore = ours.random_masking(x, 0.75, noise)
    assert torch.equal(restore, noise.argsort(1).argsort(1))
    assert kept.shape == (2, 4, 5)
    torch.testing.assert_close(
        ours.forward_loss(imgs, pred, mask, 4),
        MaskedAutoencoderViT(norm_pix_loss=False).forward_loss(imgs, pred, mask),
    )


@pytest.mark.usefixtures("stand_ins")
def test_install_on_clip() -> None:
    torch.manual_seed(0)
    model, original = CLIPModel(), CLIPModel.forward
    inputs = {"input_ids": rand(7, 6), "pixel_values": rand(7, 6)}

    def trained(**options: Any) -> tuple[Any, list[Tensor]]:
        model.zero_grad()
        out = model(**inputs, return_loss=True, **options)
        out.loss.backward()
        return out, [out.loss.detach(), out.text_embeds, out.image_embeds] + [
            p.grad for p in model.parameters()
        ]

    theirs, expected = trained()
    with ours.install():
        assert inspect.signature(model.forward) == inspect.signature(original.__get__(model))
        mine, found = trained(output_attentions=True)
        assert_same(found, expected, torch.float32)
        assert mine.logits_per_text is mine.logits_per_image is None
        assert mine.text_model_output.inputs == {"input_ids", "output_attentions"}
        assert model(**inputs).logits_per_text is not None
        with pytest.warns(
            UserWarning, match="CLIPModel: a call with return_dict; computed as the original does"
        ):
            assert_same(trained(return_dict=True)[1], expected, torch.float32)
        assert torch.equal(model.eval()(**inputs, return_loss=True).logits_per_text, theirs.logits_per_text)
    assert CLIPModel.forward is original


@pytest.mark.usefixtures("stand_ins")
def test_install_on_vit_mae() -> None:
    embeddings, model = ViTMAEEmbeddings(), ViTMAEForPreTraining()
    x, imgs, pred, mask = rand(2, 16, 5), rand(2, 3, 16, 16), rand(2, 16, 48), (rand(2, 16) > 0).float()

    def found() -> list[Tensor]:
        torch.manual_seed(0)
        return [*embeddings.random_masking(x), model.forward_loss(imgs, pred, mask)]

    expected = found()
    original = ViTMAEEmbeddings.random_masking, ViTMAEForPreTraining.forward_loss
    with ours.install():
        for mine, other in zip(found(), expected, strict=True):
            torch.testing.assert_close(mine, other)
        assert embeddings.random_masking(x, noise=torch.rand(2, 16))[0].shape == (2, 6, 5)
        with pytest.raises(ValueError, match="pixel_values must be square unless interpolate_pos_encoding"):
            model.forward_loss(rand(2, 3, 16, 8), pred, mask)
        with pytest.raises(ValueError, match="pixel_values must have 3 channels, got 1"):
            model.forward_loss(rand(2, 1, 16, 16), pred, mask)
        assert model.forward_loss(rand(2, 3, 16, 8), pred[:, :8], mask[:, :8], True) > 0
    assert original == (ViTMAEEmbeddings.random_masking, ViTMAEForPreTraining.forward_loss)


def test_install_on_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=dict(tower, vocab_size=50),
            vision_config=dict(tower, image_size=16, patch_size=8),
            projection_dim=8,
        )
    )
    inputs = {"input_ids": torch.randint(0, 50, (5, 7)), "pixel_values": rand(5, 3, 16, 16)}
    autoencoder = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **tower, image_size=16, patch_size=4, decoder_hidden_size=16, decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2, decoder_intermediate_size=16,
        )
    )  # fmt: skip

    def trained() -> list[Tensor]:
        torch.manual_seed(1)
        losses = [clip.train()(**inputs, return_loss=True).loss, autoencoder(inputs["pixel_values"]).loss]
        parameters = [p for model in (clip, autoencoder) for p in model.parameters() if p.requires_grad]
        return [*losses, *torch.autograd.grad(sum(losses), parameters, allow_unused=True)]

    expected = trained()
    with ours.install():
        assert_same(trained(), expected, torch.float32)


def test_install_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, ours._CLIP, None)
    with pytest.raises(ImportError, match='pip install "transformers"'):
        ours.install()
