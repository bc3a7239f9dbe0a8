"""Patch dropout against the installed timm."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit.integrations import timm as ours

from .parity import assert_same, run

theirs = pytest.importorskip("timm.layers")


def seeded(layer: nn.Module) -> Any:
    def function(x: Tensor) -> Any:
        torch.manual_seed(3)
        return layer(x)

    return function


@pytest.mark.parametrize("name", ["PatchDropout", "PatchDropoutWithIndices", "patch_dropout_forward"])
def test_same_interface(name: str) -> None:
    mine, other = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
    assert list(mine)[: len(other)] == list(other)
    assert all(mine[argument].default == other[argument].default for argument in other)
    if name != "patch_dropout_forward":
        assert getattr(ours, name)().state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("patches", [16, 0])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("prob", [0.0, 0.25, 0.99])
def test_same_patches(prob: float, ordered: bool, patches: int, prefix: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, prefix + patches, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    mine, other = (module.PatchDropoutWithIndices(prob, prefix, ordered) for module in (ours, theirs))
    (found, kept), (expected, wanted) = seeded(mine)(x), seeded(other)(x)
    assert torch.equal(found, expected)
    assert kept is wanted is None if not prob else torch.equal(kept, wanted)
    mine, other = (module.PatchDropout(prob, prefix, ordered) for module in (ours, theirs))
    assert_same(run(seeded(mine), x), run(seeded(other), x), dtype)
    assert mine.eval()(x) is x
    assert ours.PatchDropout(prob, prefix, ordered, return_indices=True).eval()(x)[1] is None


def test_bad_input_is_rejected() -> None:
    for module in (ours, theirs):
        with pytest.raises(AssertionError):
            module.PatchDropout(1.0)
    with pytest.raises(AssertionError, match=r"PatchDropout: prob must be in \[0, 1\), got -0.1"):
        ours.PatchDropout(-0.1)
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, N, D\), got \(2, 3, 4, 5\)"):
        ours.PatchDropout()(torch.randn(2, 3, 4, 5))


def test_compile() -> None:
    compiled = torch.compile(ours.PatchDropoutWithIndices(0.5, 1), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 9, 4)
    out, kept = compiled(x)
    assert torch.equal(out[:, 1:], x.gather(1, 1 + kept[..., None].expand(-1, -1, 4)))
    assert torch.equal(out[:, 0], x[:, 0])


@pytest.mark.parametrize("name", ["PatchDropout", "PatchDropoutWithIndices"])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_script_and_fx(name: str) -> None:
    """Scripted and traced as timm's: during an install and without one."""
    x = torch.randn(2, 9, 4)
    mine, other = getattr(ours, name)(0.5), getattr(theirs, name)(0.5)

    def check(found: Any, expected: Any) -> None:
        torch.testing.assert_close(seeded(found)(x), seeded(expected)(x))

    check(torch.jit.script(mine), other)
    check(torch.fx.symbolic_trace(mine), other)
    check(torch.jit.script(torch.fx.symbolic_trace(mine)), other)
    with ours.install():
        check(torch.jit.script(other), mine)
    check(torch.jit.script(other), mine)


def test_install() -> None:
    """A timm model drops the same patches by our function, with the same gradients."""
    import timm
    from timm.layers import patch_dropout

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=64,
        embed_dim=24,
        depth=1,
        num_heads=2,
        patch_drop_rate=0.5,
        num_classes=3,
    )
    x = torch.randn(2, 3, 64, 64)

    def trained() -> list[Tensor]:
        model.zero_grad()
        out = seeded(model)(x)
        out.square().sum().backward()
        return [out.detach()] + [p.grad for p in model.parameters()]

    expected, original = trained(), patch_dropout.patch_dropout_forward
    with pytest.raises(KeyError), ours.install(), ours.install():
        assert (
            patch_dropout.patch_dropout_forward is theirs.patch_dropout_forward is ours.patch_dropout_forward
        )
        assert_same(trained(), expected, torch.float32)
        raise KeyError
    assert patch_dropout.patch_dropout_forward is theirs.patch_dropout_forward is original
