"""MAE's masking, unshuffling and loss against the paper's formulas, and a model patched."""

from __future__ import annotations

import copy
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cfmvit.integrations import mae as ours

from .masked_autoencoder import MaskedAutoencoderViT
from .parity import assert_same, run

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture
def model() -> MaskedAutoencoderViT:
    torch.manual_seed(0)
    return MaskedAutoencoderViT()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64])
@pytest.mark.parametrize("mask_ratio", [0.0, 0.6, 0.75, 0.99, 1.0])
@pytest.mark.filterwarnings("ignore:random_masking. no kernel for torch.int64:UserWarning")
def test_random_masking_draws_the_same_masks(
    model: MaskedAutoencoderViT, mask_ratio: float, dtype: torch.dtype
) -> None:
    x = (rand(3, 17, 5) * 10).to(dtype)
    torch.manual_seed(5)
    expected = model.random_masking(x, mask_ratio)
    torch.manual_seed(5)
    found = ours.random_masking(x, mask_ratio)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_random_masking_of_given_noise() -> None:
    noise = torch.tensor([[0.3, 0.1, 0.2, 0.1]])
    kept, mask, restore = ours.random_masking(torch.arange(4.0).view(1, 4, 1), 0.5, noise)
    assert kept.flatten().tolist() == [1, 3]
    assert mask.tolist() == [[1, 0, 1, 0]]
    assert restore.tolist() == [[3, 0, 2, 1]]


def test_gradient_of_masking() -> None:
    x, noise = rand(2, 9, 4), torch.rand(2, 9)
    keep = noise.argsort(1)[:, :4]
    mine = run(lambda x: ours.random_masking(x, 0.5, noise)[0], x)
    other = run(lambda x: torch.stack([row[some] for row, some in zip(x, keep)]), x)
    assert_same(mine, other, torch.float64)


def unshuffled(x: Tensor, mask_token: Tensor, restore: Tensor, pos_embed: Tensor) -> Tensor:
    model = Namespace(decoder_embed=lambda x: x, mask_token=mask_token, decoder_pos_embed=pos_embed)
    return MaskedAutoencoderViT.unshuffle(model, x, restore)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [0, 5, 16])
def test_unshuffle(kept: int, dtype: torch.dtype) -> None:
    """A half-precision sequence beside float32 parameters becomes float32, as joining and adding make it."""
    restore = torch.rand(3, 16).argsort(1)
    inputs = [rand(3, 1 + kept, 16, dtype=dtype), rand(1, 1, 16, seed=1), restore, rand(1, 17, 16, seed=2)]
    mine, other = run(ours.unshuffle, *inputs), run(unshuffled, *inputs)
    assert mine[0].dtype == other[0].dtype
    assert_same(mine, other, dtype if dtype.itemsize == 2 else torch.float32)
    alone = ours.unshuffle(*inputs[:3])
    torch.testing.assert_close(alone, unshuffled(*inputs[:3], torch.zeros(1, 17, 16)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_forward_loss(norm_pix_loss: bool, dtype: torch.dtype) -> None:
    model = MaskedAutoencoderViT(norm_pix_loss=norm_pix_loss)
    imgs, pred = rand(2, 3, 16, 16), rand(2, 16, 48, seed=1, dtype=dtype)
    binary = (torch.rand(2, 16) > 0.3).float()
    for mask in (binary, torch.rand(2, 16), torch.ones(2, 16)):
        mine = run(lambda pred, mask=mask: ours.forward_loss(imgs, pred, mask, 4, norm_pix_loss), pred)
        other = run(lambda pred, mask=mask: model.forward_loss(imgs, pred.double(), mask.double()), pred)
        assert mine[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_same(mine, other, dtype if dtype.itemsize == 2 else torch.float32)
    assert ours.forward_loss(imgs, pred, torch.zeros(2, 16), 4).isnan()  # as theirs


def test_bad_input_is_rejected() -> None:
    imgs, pred, mask = rand(2, 3, 16, 16), rand(2, 16, 48), torch.ones(2, 16)
    for wrong in (rand(2, 3, 16, 12), rand(2, 3, 18, 18)):
        with pytest.raises(AssertionError, match="imgs must be square, with sides that are multiples of 4"):
            ours.forward_loss(wrong, pred, mask, 4)
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 16\), got \(2, 15\)"):
        ours.forward_loss(imgs, pred, mask[:, 1:], 4)
    with pytest.raises(ValueError, match="pred must have shape"):
        ours.forward_loss(imgs, pred[..., 1:], mask, 4)
    with pytest.raises(ValueError, match=r"mask_ratio must lie in 0\.\.1, got 1.5"):
        ours.random_masking(pred, 1.5)
    with pytest.raises(ValueError, match="restore must"):
        ours.unshuffle(rand(1, 3, 4), rand(1, 1, 4), torch.tensor([[0, 1, 9, 2]]))
    with pytest.raises(
        TypeError, match="got Linear without random_masking, forward_decoder, forward_loss, decoder_embed"
    ):
        ours.install(torch.nn.Linear(1, 1))


def trained(model: MaskedAutoencoderViT, imgs: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    loss, pred, mask = model(imgs)
    loss.backward()
    return [loss.detach(), pred.detach(), mask] + [p.grad for p in model.parameters() if p.requires_grad]


def test_install_on_a_model_and_on_its_class(model: MaskedAutoencoderViT) -> None:
    imgs, state = rand(2, 3, 16, 16), list(model.state_dict())
    expected = trained(model, imgs)
    original = MaskedAutoencoderViT.forward_loss
    with pytest.raises(KeyError), ours.install(model):
        assert model.forward_loss.__func__ is ours._forward_loss
        assert list(model.state_dict()) == state
        assert_same(trained(model, imgs), expected, torch.float32)
        assert_same(trained(copy.deepcopy(model), imgs), expected, torch.float32)
        raise KeyError
    assert model.forward_loss.__func__ is original
    with ours.install(MaskedAutoencoderViT):
        assert_same(trained(model, imgs), expected, torch.float32)
    assert MaskedAutoencoderViT.forward_loss is original


def replica(model: torch.nn.Module) -> torch.nn.Module:
    """What DataParallel makes of a model, on the device where it is."""
    made = model._replicate_for_data_parallel()
    for name, parameter in model._parameters.items():
        setattr(made, name, parameter.clone())
    return made


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), replica],
    ids=["copy", "deepcopy", "pickle", "replica"],
)  # fmt: skip
def test_a_copy_of_a_patched_model_uses_its_own_parts(model: MaskedAutoencoderViT, copied: Any) -> None:
    """A decoder that a copy is given later is the one that it decodes with, and it is no part of the first model's."""
    with ours.install(model):
        second = copied(model)
        assert isinstance(second, MaskedAutoencoderViT)
        assert second.state_dict().keys() == model.state_dict().keys() or not second._parameters
        second._modules = {**second._modules, "decoder_pred": torch.nn.Linear(16, 48)}
        latent, order = torch.randn(2, 5, 24), torch.rand(2, 16).argsort(1)
        found = second.forward_decoder(latent, order)
        assert not torch.equal(found, model.forward_decoder(latent, order))
        assert second.forward_decoder.__func__ is ours._forward_decoder
    assert type(model) is MaskedAutoencoderViT
    torch.testing.assert_close(found, MaskedAutoencoderViT.forward_decoder(second, latent, order))
    with ours.install(second):
        pass
    assert type(second) is MaskedAutoencoderViT


def test_a_saved_model_is_loaded(model: MaskedAutoencoderViT, tmp_path: Path) -> None:
    imgs = rand(2, 3, 16, 16)
    with ours.install(model):
        torch.save(model, tmp_path / "model.pt")
        expected = trained(model, imgs)
    assert_same(trained(torch.load(tmp_path / "model.pt", weights_only=False), imgs), expected, torch.float32)


def test_what_install_cannot_replace_is_said(model: MaskedAutoencoderViT) -> None:
    model.forward_loss = lambda *inputs: torch.zeros(())
    with pytest.warns(UserWarning, match="install: forward_loss of the model itself"):
        patch = ours.install(model)
    model.__class__ = type("Other", (type(model),), {})
    with pytest.warns(
        UserWarning, match="class of MaskedAutoencoderViT became Other after install and is left"
    ):
        patch.remove()
    assert type(model).__name__ == "Other"


def test_a_half_precision_mask_of_many_patches() -> None:
    """512 images of 196 patches: the mask's sum is above float16's largest number."""
    imgs, pred = torch.ones(512, 1, 14, 14), torch.zeros(512, 196, 1)
    for dtype in (torch.float16, torch.bfloat16, torch.bool):
        mask = (torch.arange(196) < 147).expand(512, -1).to(dtype)
        assert ours.forward_loss(imgs, pred, mask, 1) == 1


def test_autocast(model: MaskedAutoencoderViT) -> None:
    imgs = rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = trained(model, imgs)
        with ours.install(model):
            found = trained(model, imgs)
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert_same(found, expected, torch.bfloat16)


def test_compile() -> None:
    x, noise, imgs, mask = rand(2, 16, 48), torch.rand(2, 16), rand(2, 3, 16, 16), torch.ones(2, 16)
    token = rand(1, 1, 48)

    def whole(x: Tensor) -> Tensor:
        kept, removed, restore = ours.random_masking(x, 0.5, noise)
        full = ours.unshuffle(torch.cat([x[:, :1], kept], 1), token, restore)
        return ours.forward_loss(imgs, full[:, 1:], removed * mask, 4, True)

    assert_same(
        run(torch.compile(whole, fullgraph=True, backend="aot_eager"), x), run(whole, x), torch.float32
    )


def test_second_derivatives_are_the_formulas() -> None:
    """A penalty on gradients: computed by the formulas, and said once; the first derivative stays the op's."""
    imgs, pred, mask = rand(2, 3, 16, 16), rand(2, 16, 48, dtype=torch.float64), torch.ones(2, 16)
    function = lambda pred: ours.forward_loss(imgs, pred, mask, 4)
    pred.requires_grad_()
    with pytest.warns(UserWarning, match="forward_loss: a second derivative; computed as the original does"):
        (grad,) = torch.autograd.grad(function(pred), pred, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), pred)
    torch.testing.assert_close(second, grad.detach() * 2 * 2 / pred.numel())
    loss = function(pred)
    first = torch.autograd.grad(loss, pred, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, pred)[0])  # a second pass, made again
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, pred)


def test_gradients_of_images_go_the_original_way(model: MaskedAutoencoderViT) -> None:
    imgs, pred, mask = rand(2, 3, 16, 16), rand(2, 16, 48), torch.ones(2, 16)
    with pytest.warns(
        UserWarning, match="forward_loss: gradients of the images; computed as the original does"
    ):
        mine = run(lambda imgs, pred: ours.forward_loss(imgs, pred, mask, 4, True), imgs, pred)
    assert_same(mine, run(lambda imgs, pred: model.forward_loss(imgs, pred, mask), imgs, pred), torch.float32)
