"""`torch.compile` sees every install: ours is called inside, the original before and after, in every order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cfmvit.integrations import huggingface, mae, open_clip, timm, torchvision

from .masked_autoencoder import MaskedAutoencoderViT

Subject = tuple[Callable[[], Any], Callable[[], Any], Any, str]


def backend(ran: list[str]) -> Callable[..., Any]:
    """Run graphs as they are, and note in `ran` what they call."""

    def compiled(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]

        def run(*arguments: Any) -> Any:
            ran.extend(targets)
            return graph.forward(*arguments)

        return run

    return compiled


def of_open_clip() -> Subject:
    theirs = pytest.importorskip("open_clip.loss")
    loss, inputs = theirs.ClipLoss(), F.normalize(torch.randn(2, 5, 8), dim=-1)
    return open_clip.install, lambda: loss(*inputs, torch.tensor(3.0)), loss, "info_nce"


def of_siglip() -> Subject:
    theirs = pytest.importorskip("open_clip.loss")
    loss, inputs = theirs.SigLipLoss(), F.normalize(torch.randn(2, 5, 8), dim=-1)
    return (
        open_clip.install,
        lambda: loss(*inputs, torch.tensor(3.0), torch.tensor(-1.0)),
        loss,
        "sigmoid_loss",
    )


def of_mae_model() -> Subject:
    model = MaskedAutoencoderViT()
    imgs, pred, mask = torch.randn(2, 3, 16, 16), torch.randn(2, 16, 48), torch.ones(2, 16)
    return (
        lambda: mae.install(model),
        lambda: model.forward_loss(imgs, pred, mask),
        model,
        "masked_pixel_loss",
    )


def of_mae_class() -> Subject:
    _, call, model, op = of_mae_model()
    return lambda: mae.install(MaskedAutoencoderViT), call, model, op


def of_huggingface() -> Subject:
    transformers = pytest.importorskip("transformers")
    tower = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8)
    config = transformers.ViTMAEConfig(**tower, patch_size=4)
    masking = transformers.models.vit_mae.modeling_vit_mae.ViTMAEEmbeddings(config)
    return (
        huggingface.install,
        lambda: masking.random_masking(torch.ones(2, 4, 8))[0],
        masking,
        "random_masking",
    )


def of_timm() -> Subject:
    theirs = pytest.importorskip("timm.layers")
    layer = theirs.PatchDropout(0.5).train()
    return timm.install, lambda: layer(torch.ones(2, 5, 8)), layer, "random_masking"


def of_torchvision() -> Subject:
    theirs = pytest.importorskip("torchvision.ops")
    layer, rois = theirs.RoIAlign(2, 1.0, 2), torch.tensor([[0, 1.0, 1, 4, 4]])
    return torchvision.install, lambda: layer(torch.ones(1, 3, 8, 8), rois), layer, "roi_align"


def of_torchvision_function() -> Subject:
    theirs, rois = pytest.importorskip("torchvision.ops"), torch.tensor([[0, 1.0, 1, 4, 4]])
    return torchvision.install, lambda: theirs.roi_align(torch.ones(1, 3, 8, 8), rois, 2), None, "roi_align"


SUBJECTS = [
    of_open_clip, of_siglip, of_mae_model, of_mae_class, of_huggingface, of_timm, of_torchvision, of_torchvision_function
]  # fmt: skip


@pytest.fixture(params=SUBJECTS, ids=lambda make: make.__name__)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    torch.compiler.reset()
    yield request.param()
    torch.compiler.reset()


def asking(subject: Subject, nested: bool) -> Callable[[], bool]:
    _, call, _, op = subject
    ran: list[str] = []
    compiled = torch.compile((lambda: call() + 0) if nested else call, backend=backend(ran))

    def ours() -> bool:
        """Whether a compiled call runs our op now."""
        ran.clear()
        compiled()
        assert ran, "nothing was compiled"
        return f"cfmvit.{op}.default" in ran

    return ours


def test_install_is_seen(subject: Subject) -> None:
    ours = asking(subject, nested=True)
    assert not ours()
    for _ in range(2):
        with subject[0]():
            assert ours()
            assert ours()
        assert not ours()


@pytest.mark.parametrize("make", [of_open_clip, of_mae_model], ids=lambda make: make.__name__)
def test_install_is_left(make: Callable[[], Subject]) -> None:
    """Compiled inside first, and two patches that end in the order in which they began."""
    torch.compiler.reset()
    subject = make()
    ours = asking(subject, nested=False)
    with subject[0]():
        assert ours()
    assert not ours()
    first, second = subject[0](), subject[0]()
    first.remove()
    assert ours()
    second.remove()
    assert not ours()


def test_a_compiled_module_is_served() -> None:
    """`torch.compile(module)`, and a module that compiles itself."""
    install, _, loss, op = of_open_clip()
    for compile_ in (lambda module, **options: torch.compile(module, **options), compiled_in_place):
        torch.compiler.reset()
        ran: list[str] = []
        module = compile_(nn.Sequential(Features(), Loss(loss)), backend=backend(ran))
        for inside in (False, True, False, True):
            ran.clear()
            with install() if inside else nullcontext():
                module(torch.ones(5, 8))
            assert (f"cfmvit.{op}.default" in ran) == inside
            assert ran


def compiled_in_place(module: nn.Module, **options: Any) -> nn.Module:
    module.compile(**options)
    return module


class Features(nn.Module):
    def forward(self, x):
        """Features of images and of texts."""
        return F.normalize(x + 1), F.normalize(x.cumsum(1))


class Loss(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, features):
        """The loss of pairs of features."""
        return self.loss(*features, torch.tensor(3.0))
