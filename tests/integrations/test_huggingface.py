"""transformers' losses and masking: against the formulas, and on its own models."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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


def tiny(**options: Any) -> dict[str, Any]:
    return dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, **options
    )  # fmt: skip


def clip_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=tiny(vocab_size=50), vision_config=tiny(patch_size=8), projection_dim=8
    )
    return transformers.CLIPModel(config).train()


def autoencoder(**options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    decoder = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    config = transformers.ViTMAEConfig(
        **tiny(patch_size=4, **options), **decoder, decoder_intermediate_size=16
    )
    return transformers.ViTMAEForPreTraining(config)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)]


@contextmanager
def called(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[None]:
    """Fail unless each of our functions is called."""
    calls: list[str] = []
    for name in names:
        inner = getattr(ours, name)
        monkeypatch.setattr(
            ours, name, lambda *args, inner=inner, name=name: calls.append(name) or inner(*args)
        )
    yield
    assert set(calls) == set(names)
    monkeypatch.undo()


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


def test_install_on_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = (
        clip_model(),
        {"input_ids": torch.randint(0, 50, (5, 7)), "pixel_values": rand(5, 3, 16, 16)},
    )
    original = type(model).forward

    def found(**options: Any) -> tuple[Any, list[Tensor]]:
        out = model(**inputs, return_loss=True, **options)
        return out, gradients(out.loss, model)

    theirs, expected = found(output_hidden_states=True)
    with ours.install():
        assert inspect.signature(type(model).forward) == inspect.signature(original)
        with called(monkeypatch, "clip_loss"):
            mine, gradient = found(output_hidden_states=True)
        assert_same(gradient, expected, torch.float32)
        assert mine.logits_per_text is mine.logits_per_image is None
        for name in ("text_embeds", "image_embeds"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name))
        for name in ("text_model_output", "vision_model_output"):
            assert getattr(mine, name).keys() == getattr(theirs, name).keys()
            torch.testing.assert_close(getattr(mine, name).to_tuple(), getattr(theirs, name).to_tuple())
        assert model(**inputs).logits_per_text is not None
        with pytest.warns(
            UserWarning, match="CLIPModel: a call with return_dict; computed as the original does"
        ):
            assert isinstance(model(**inputs, return_loss=True, return_dict=False), tuple)
        assert torch.equal(model.eval()(**inputs, return_loss=True).logits_per_text, theirs.logits_per_text)
    assert type(model).forward is original


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_install_on_vit_mae(norm_pix_loss: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # In float64: what two ways of adding up leave in float32 depends on the processor.
    model, images = autoencoder(norm_pix_loss=norm_pix_loss).double(), rand(2, 3, 16, 16).double()
    before = dict(vars(type(model)))

    def found(images: Tensor = images, **options: Any) -> tuple[Any, list[Tensor]]:
        torch.manual_seed(1)
        out = model(images, **options)
        return out, gradients(out.loss, model)

    wide = {
        "images": rand(2, 3, 16, 8).double(),
        "interpolate_pos_encoding": True,
        "output_hidden_states": True,
    }
    expected = found(), found(**wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch = ours.install()
    with patch:
        for options, (theirs, gradient) in zip(({}, wide), expected, strict=True):
            with called(monkeypatch, "random_masking", "forward_loss"):
                mine, other = found(**options)
            assert_same(other, gradient, torch.float64)
            assert mine.keys() == theirs.keys()
            torch.testing.assert_close(mine.to_tuple(), theirs.to_tuple())
        assert torch.equal(
            model(images, noise=torch.arange(16.0).double().expand(2, -1)).mask[0], torch.arange(16) >= 4
        )
        with warnings.catch_warnings():  # with transformers 4 there is none
            warnings.simplefilter("ignore")
            assert isinstance(model(images, return_dict=False), tuple)
        with pytest.raises(ValueError, match=r"Input image size|image size"):
            model(rand(2, 3, 16, 8).double())
        loss = ours._forward_loss
        for wrong, message in (
            (rand(2, 3, 16, 8).double(), "must be square unless interpolate_pos_encoding"),
            (rand(2, 1, 16, 16).double(), "must have 3 channels, got 1"),
        ):
            with pytest.raises(ValueError, match=f"pixel_values {message}"):
                loss(model, wrong, mine.logits, mine.mask)
    assert vars(type(model)) == before


@pytest.mark.parametrize("autocast", [False, True])
def test_vit_mae_in_less_than_float64(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against float64: no further from it than twice what the original is, and a little."""
    model, images = autoencoder(norm_pix_loss=True), rand(2, 3, 16, 16)

    def found(dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(1)
        model.to(dtype)
        noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.float32):
            loss = model(images.to(dtype), noise=noise).loss
        grads = [x.double() for x in gradients(loss, model) if x is not None]
        return [loss.detach().double().reshape(1), torch.cat([x.flatten() for x in grads])]

    exact, theirs = found(torch.float64), found(torch.float32)
    with ours.install(), called(monkeypatch, "forward_loss"):
        mine = found(torch.float32)
    for a, b, e in zip(mine, theirs, exact, strict=True):
        assert (a - e).norm() <= 2 * (b - e).norm() + 1e-5 * e.norm()


def test_what_a_version_has_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = type(autoencoder().vit.embeddings)
    monkeypatch.delattr(embeddings, "random_masking")
    with (
        pytest.warns(
            UserWarning,
            match=r"install: transformers .* has no ViTMAEEmbeddings.random_masking: only the rest is replaced",
        ),
    ):
        ours.install().remove()
    assert not hasattr(embeddings, "random_masking")


def test_install_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, ours._CLIP, None)
    with pytest.raises(ImportError, match='pip install "transformers"'):
        ours.install()
