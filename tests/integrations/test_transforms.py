"""Every drop-in beside its original under function transforms, forward mode, checkpoints, torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from cfmvit.integrations import huggingface, mae, open_clip, timm, torchvision

from .masked_autoencoder import MaskedAutoencoderViT

pytestmark = pytest.mark.filterwarnings("ignore:.*computed as the original does:UserWarning")
Function = Callable[[Tensor], Tensor]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


NOISE = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
BATCH = torch.export.Dim("batch", min=2, max=64)


class Original(nn.Module):
    """MAE's parts as functions of a batch."""

    norm_pix_loss = True
    patchify, forward_loss_ = MaskedAutoencoderViT.patchify, MaskedAutoencoderViT.forward_loss

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.patch_size = (2, 2)


def pair_of_features(loss: Callable[..., Tensor], **options: Tensor) -> Function:
    text = F.normalize(rand(3, 6, seed=1), dim=-1)
    return lambda x: loss(F.normalize(x, dim=-1), text[: x.shape[0]], rand().abs() + 5, **options)


def gathered(x: Tensor) -> Tensor:
    keep = NOISE[: x.shape[0]].argsort(1)[:, :4]
    return x.gather(1, keep[..., None].expand(-1, -1, x.shape[2]))


def masked(x: Tensor) -> Tensor:
    return mae.random_masking(x, 0.5, NOISE[: x.shape[0]])[0]


def unshuffled(function: Callable[..., Tensor]) -> Function:
    return lambda x: function(x, rand(1, 1, 4), NOISE[: x.shape[0]].argsort(1), rand(1, 9, 4, seed=2))


def unshuffle_formula(x: Tensor, token: Tensor, order: Tensor, positions: Tensor) -> Tensor:
    missing = token.expand(x.shape[0], order.shape[1] + 1 - x.shape[1], -1)
    full = torch.cat([x[:, 1:], missing], 1).gather(1, order[..., None].expand(-1, -1, x.shape[2]))
    return torch.cat([x[:, :1], full], 1) + positions


def reconstructed(function: Callable[..., Tensor]) -> Function:
    return lambda x: function(rand(3, 3, 4, 8)[: x.shape[0]], x, NOISE[: x.shape[0]].round().double())


def pixels_formula(imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
    return Original().forward_loss_(imgs, pred, mask)


def dropped(layer: nn.Module) -> Function:
    def function(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return layer(x)

    return function


def clip_formula(text: Tensor, image: Tensor, scale: Tensor) -> Tensor:
    logits = text @ image.T * scale
    labels = torch.arange(logits.shape[0])
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def subjects() -> dict[str, tuple[Function, Function, Tensor]]:
    """Ours, the original, and an input, whose first dimension is the batch."""
    import timm.layers as timm_
    from open_clip import loss as open_clip_

    bias = torch.tensor(-2.0).double()
    features, tokens = rand(3, 6), rand(3, 8, 4)
    loss = partial(mae.forward_loss, patch_size=2, norm_pix_loss=True, square=False)
    of_huggingface = partial(huggingface.forward_loss, patch_size=2, norm_pix_loss=True)
    return {
        "ClipLoss": (
            pair_of_features(open_clip.ClipLoss()), pair_of_features(open_clip_.ClipLoss()), features
        ),
        "SigLipLoss": (
            pair_of_features(open_clip.SigLipLoss(), logit_bias=bias),
            pair_of_features(open_clip_.SigLipLoss(), logit_bias=bias),
            features,
        ),
        "clip_loss": (pair_of_features(huggingface.clip_loss), pair_of_features(clip_formula), features),
        "random_masking": (masked, gathered, tokens),
        "unshuffle": (unshuffled(mae.unshuffle), unshuffled(unshuffle_formula), rand(3, 5, 4)),
        "forward_loss": (reconstructed(loss), reconstructed(pixels_formula), rand(3, 8, 12)),
        "huggingface": (reconstructed(of_huggingface), reconstructed(pixels_formula), rand(3, 8, 12)),
        "PatchDropout": (dropped(timm.PatchDropout()), dropped(timm_.PatchDropout()), tokens),
    }  # fmt: skip


NAMES = [
    "ClipLoss", "SigLipLoss", "clip_loss", "random_masking", "unshuffle", "forward_loss", "huggingface", "PatchDropout"
]  # fmt: skip


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest) -> tuple[Function, Function, Tensor]:
    pytest.importorskip("open_clip")
    pytest.importorskip("timm")
    return subjects()[request.param]


def forward_mode(function: Function, x: Tensor) -> Any:
    return torch.func.jvp(function, (x,), (x.cos(),))


def dual_numbers(function: Function, x: Tensor) -> Any:
    with torch.autograd.forward_ad.dual_level():
        out = function(torch.autograd.forward_ad.make_dual(x.clone().requires_grad_(), x.cos()))
        return tuple(value.detach() for value in torch.autograd.forward_ad.unpack_dual(out))


def scalar(function: Function) -> Function:
    return lambda x: function(x).sin().sum()


def gradient(function: Function, x: Tensor) -> Tensor:
    return torch.func.grad(scalar(function))(x)


def hessian(function: Function, x: Tensor) -> Tensor:
    return torch.func.jvp(torch.func.grad(scalar(function)), (x,), (x.cos(),))[1]


def jacobian(function: Function, x: Tensor) -> Tensor:
    return torch.func.jacrev(lambda x: function(x).flatten()[:3])(x)


def batched(function: Function, x: Tensor) -> Tensor:
    return torch.vmap(function, randomness="same")(torch.stack([x, x.cos()]))


def batched_gradients(function: Function, x: Tensor) -> Tensor:
    return torch.vmap(torch.func.grad(scalar(function)), randomness="same")(torch.stack([x, x.cos()]))


def second_derivative(function: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(scalar(function)(leaf), leaf, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), leaf)[0]


def checkpointed(function: Function, x: Tensor, **options: Any) -> Tensor:
    leaf, runs = x.clone().requires_grad_(), []

    def region(x: Tensor) -> Tensor:
        runs.append(1)
        return function(x * 2)

    checkpoint(region, leaf, use_reentrant=False, **options).sin().sum().backward()
    assert len(runs) == 2
    return leaf.grad


def selectively_checkpointed(function: Function, x: Tensor) -> Tensor:
    keep = lambda ctx, op, *args, **kwargs: (
        CheckpointPolicy.MUST_SAVE if "mul" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE
    )
    return checkpointed(function, x, context_fn=partial(create_selective_checkpoint_contexts, keep))


def compiled(function: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    torch.compile(lambda x: function(x).sin().sum(), backend="aot_eager")(leaf).backward()
    return leaf.grad


MODES = [
    forward_mode, dual_numbers, gradient, hessian, jacobian, batched, batched_gradients, second_derivative, checkpointed,
    selectively_checkpointed, compiled,
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
def test_as_the_original(mode: Callable[..., Any], subject: tuple[Function, Function, Tensor]) -> None:
    ours, theirs, x = subject
    torch.testing.assert_close(mode(ours, x), mode(theirs, x), check_dtype=False)


class Program(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        """A function as torch.export takes it."""
        return self.function(*inputs)


def images(batch: int) -> tuple[Tensor, ...]:
    return rand(batch, 3, 8, 8), rand(batch, 16, 12), rand(batch, 16).round()


def boxes(batch: int) -> tuple[Tensor, ...]:
    return rand(batch, 2, 8, 8), rand(batch, 4).abs().cumsum(1)


# Constants of the programs, made before: torch 2.11 exports no generator.
SCALE, BIAS, MASK_TOKEN, POSITIONS = rand() + 9, rand(), rand(1, 1, 4), rand(1, 9, 4)
EXPORTED: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Tensor, ...]]]] = {
    "ClipLoss": (lambda *x: open_clip.ClipLoss()(*x, SCALE), lambda batch: (rand(batch, 6),) * 2),
    "SigLipLoss": (lambda *x: open_clip.SigLipLoss()(*x, SCALE, BIAS), lambda batch: (rand(batch, 6),) * 2),
    "clip_loss": (lambda *x: huggingface.clip_loss(*x, SCALE), lambda batch: (rand(batch, 6),) * 2),
    "forward_loss": (lambda *x: mae.forward_loss(*x, 2, True), images),
    "huggingface": (lambda *x: huggingface.forward_loss(*x, 2, True), images),
    "random_masking": (
        lambda *x: mae.random_masking(x[0], 0.5, x[1]), lambda batch: (rand(batch, 8, 4), rand(batch, 8))
    ),
    "unshuffle": (
        lambda x, order: mae.unshuffle(x, MASK_TOKEN, order, POSITIONS),
        lambda batch: (rand(batch, 5, 4), rand(batch, 8).argsort(1)),
    ),
    "roi_align": (lambda x, boxes: torchvision.roi_align(x, [boxes, boxes[:1]], 2), boxes),
    "MultiScaleRoIAlign": (
        lambda x, boxes: torchvision.MultiScaleRoIAlign(["a", "b"], 2, 2)(
            {"a": x, "b": x[..., ::2, ::2]}, [boxes], [(32, 32)]
        ),
        boxes,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTED)
def test_export_leaves_the_batch_open(name: str) -> None:
    function, inputs = EXPORTED[name]
    dynamic = tuple({0: BATCH} for _ in inputs(3))
    program = torch.export.export(Program(function), inputs(3), dynamic_shapes=(dynamic,)).module()
    torch.testing.assert_close(program(*inputs(5)), function(*inputs(5)))
