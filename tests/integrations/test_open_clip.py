"""open_clip's losses against the installed original: values, gradients, errors, and open_clip's own classes patched."""

from __future__ import annotations

import inspect
import sys
from argparse import Namespace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.integrations import open_clip as ours

from .parity import assert_same, run

theirs = pytest.importorskip("open_clip.loss")
GENERATOR = torch.Generator().manual_seed(0)


def features(rows: int = 33, width: int = 24, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    pair = torch.randn(2, rows, width, generator=GENERATOR, dtype=torch.float64)
    return [x.to(dtype) for x in F.normalize(pair + 0.3 * pair.flip(0), dim=-1)]


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_same_interface(name: str) -> None:
    mine, other = getattr(ours, name), getattr(theirs, name)
    for method in ("__init__", "forward", "get_logits", "get_ground_truth"):
        wanted = inspect.signature(getattr(other, method)).parameters
        found = inspect.signature(getattr(mine, method)).parameters
        for argument, parameter in wanted.items():
            assert found[argument].default == parameter.default, f"{method}: {argument}"
            assert found[argument].kind == parameter.kind
        assert list(found)[: len(wanted)] == list(wanted)
    assert mine().state_dict() == {}
    assert set(vars(other())) <= set(vars(mine()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [None, -3.0])
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_parity(name: str, bias: float | None, dtype: torch.dtype) -> None:
    inputs: list[Any] = [*features(dtype=dtype), torch.tensor(12.0, dtype=dtype)]
    inputs.append(None if bias is None else torch.tensor(bias, dtype=dtype))
    assert_same(run(getattr(ours, name)(), *inputs), run(getattr(theirs, name)(), *inputs), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_half_precision_is_closer_to_the_truth(name: str, dtype: torch.dtype) -> None:
    inputs = [
        *features(rows=64, dtype=dtype),
        torch.tensor(15.0, dtype=dtype),
        torch.tensor(-2.0, dtype=dtype),
    ]
    mine, other = run(getattr(ours, name)(), *inputs), run(getattr(theirs, name)(), *inputs)
    truth = run(getattr(theirs, name)(), *(x.double() for x in inputs))
    assert mine[0].dtype == torch.float32
    for a, b, exact, x in zip(mine[1:3], other[1:3], truth[1:3], inputs):
        assert a.dtype == x.dtype
        assert (a.double() - exact).norm() <= (b.double() - exact).norm()
    assert abs(mine[0].double() - truth[0]) <= abs(other[0].double() - truth[0]) + 1e-6


@pytest.mark.parametrize("unnormalised", [False, True], ids=["unit", "unnormalised"])
@pytest.mark.parametrize("size", [1.0, 1e2, 1e6, 1e15])
def test_an_unclamped_logit_scale_costs_no_accuracy(size: float, unnormalised: bool) -> None:
    lengths, scale = (size**0.5, 1.0) if unnormalised else (1.0, size)
    inputs = [*(lengths * x for x in features(rows=90, width=48)), torch.tensor(scale)]
    mine, other = run(ours.ClipLoss(), *inputs), run(theirs.ClipLoss(), *inputs)
    truth = run(theirs.ClipLoss(), *(x.double() for x in inputs))
    for a, b, exact in zip(mine[1:], other[1:], truth[1:], strict=True):
        of_mine, of_other = (float((x.double() - exact).norm() / exact.norm()) for x in (a, b))
        assert a.isfinite().all()
        assert of_mine <= max(of_other, min(2 * of_other, 1e-5), 5e-7)  # a few roundings


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_autocast_and_compile(name: str) -> None:
    loss, inputs = getattr(ours, name)(), [*features(), torch.tensor(12.0), torch.tensor(-1.0)]
    expected = run(loss, *inputs)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, *inputs), expected, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(run(loss, *inputs), expected, torch.float32)
        mixed = [inputs[0].bfloat16(), *inputs[1:]]
        assert_same(run(loss, *mixed), expected, torch.bfloat16)


@pytest.mark.parametrize("scale", [7.5, 7, torch.tensor([7.5])])
def test_logit_scale_as_open_clip_has_it(scale: Any) -> None:
    image, text = features()
    expected = theirs.ClipLoss()(image, text, scale)
    torch.testing.assert_close(ours.ClipLoss()(image, text, scale), expected.reshape(()))
    found = ours.ClipLoss()(image, text, scale, output_dict=True)
    assert list(found) == ["contrastive_loss"]


def test_logits_and_labels() -> None:
    image, text = features(5)
    for mine, other in ((ours.ClipLoss(cache_labels=True), theirs.ClipLoss(cache_labels=True)),):
        for bias in (None, torch.tensor(0.5)):
            expected = other.get_logits(image, text, 3.0, logit_bias=bias)
            for a, b in zip(mine.get_logits(image, text, 3.0, logit_bias=bias), expected, strict=True):
                assert torch.equal(a, b)
        for count in (5, 5, 3):
            assert torch.equal(
                mine.get_ground_truth(image.device, count), other.get_ground_truth(image.device, count)
            )
        assert mine.prev_num_logits == other.prev_num_logits
    mine, other = ours.SigLipLoss(), theirs.SigLipLoss()
    for negative in (False, True):
        arguments = (image.device, torch.float32, 4, negative)
        assert torch.equal(mine.get_ground_truth(*arguments), other.get_ground_truth(*arguments))


def test_bad_input_is_rejected() -> None:
    image, text = features(6)
    for loss in (ours.ClipLoss(), ours.SigLipLoss()):
        with pytest.raises(ValueError, match="text must have image's"):
            loss(image, text[:5], torch.tensor(1.0), None)
        with pytest.raises(ValueError, match="text must have image's width 24, got 20"):
            loss(image, text[:, :20], torch.tensor(1.0), None)
        with pytest.raises(TypeError, match="dtype"):
            loss(image, text.double(), torch.tensor(1.0), None)
    with pytest.raises(NotImplementedError, match="use_horovod must be False, got True"):
        ours.ClipLoss(use_horovod=True)
    with pytest.raises(AssertionError, match=r"dist_impl must be one of .* got 'ring'"):
        ours.SigLipLoss(dist_impl="ring")
    for loss in (ours.ClipLoss(world_size=2), ours.SigLipLoss(world_size=2)):
        with pytest.raises(ValueError, match=r"got 2 with torch\.distributed not initialised"):
            loss(image, text, torch.tensor(1.0), None)


def test_what_the_op_cannot_take_goes_the_original_way() -> None:
    image, text = features()
    scale = torch.linspace(1, 2, 33)[:, None]  # one factor for each row
    with pytest.warns(
        UserWarning, match=r"ClipLoss: .* more than one element; computed as the original does"
    ):
        found = run(ours.ClipLoss(), image, text, scale)
    assert_same(found, run(theirs.ClipLoss(), image, text, scale), torch.float32)
    assert_same(run(ours.ClipLoss(), image, text, scale), found, torch.float32)  # said once


def arguments(**changes: Any) -> Namespace:
    values: dict[str, Any] = dict(
        distill=False, model="ViT-B-32", siglip=False, local_loss=False, gather_with_grad=False, rank=0,
        world_size=1, horovod=False, loss_dist_impl=None, coca_caption_loss_weight=2.0,
        coca_contrastive_loss_weight=1.0,
    )  # fmt: skip
    return Namespace(**{**values, **changes})


def fails_on_logits(*_: Any, **__: Any) -> None:
    raise AssertionError("logits were made")


def test_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses made by open_clip's factory, before or after, don't make logits while the patch holds."""
    from open_clip import create_loss

    monkeypatch.setattr(theirs.ClipLoss, "get_logits", fails_on_logits)
    monkeypatch.setattr(theirs.SigLipLoss, "get_logits", fails_on_logits)
    inputs = dict(zip(("image_features", "text_features"), features()), logit_scale=torch.tensor(9.0))
    clip, siglip = create_loss(arguments()), create_loss(arguments(siglip=True))
    coca = create_loss(arguments(model="coca_ViT-B-32"))
    captions = dict(logits=torch.randn(2, 3, 7), labels=torch.randint(1, 7, (2, 3)))
    original = theirs.ClipLoss.forward
    patch = ours.install()
    with ours.install():
        assert clip(**inputs, output_dict=True)["contrastive_loss"] == ours.ClipLoss()(**inputs)
        assert siglip(**inputs, logit_bias=torch.tensor(-1.0)) > 0
        assert coca(**inputs, **captions)[0] == ours.ClipLoss()(**inputs)
    assert type(clip) is theirs.ClipLoss
    assert clip(**inputs) == ours.ClipLoss()(**inputs)  # the first patch still holds
    patch.remove()
    patch.remove()
    assert theirs.ClipLoss.forward is original
    with pytest.raises(AssertionError, match="logits were made"):
        clip(**inputs)


def test_install_survives_an_exception_and_any_order() -> None:
    original = theirs.ClipLoss.forward
    with pytest.raises(KeyError), ours.install():
        raise KeyError
    first, second = ours.install(), ours.install()
    first.remove()
    assert theirs.ClipLoss.forward is ours.ClipLoss.forward
    second.remove()
    assert theirs.ClipLoss.forward is original


def test_distillation_keeps_its_logits() -> None:
    image, text = features()
    inputs = (image, text, torch.tensor(9.0), text, image, torch.tensor(5.0))
    expected = theirs.DistillClipLoss()(*inputs)
    with ours.install():
        assert theirs.DistillClipLoss()(*inputs) == expected


def test_command_trains_on_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m cfmvit.integrations.open_clip` hands its arguments to open_clip's training, patched."""
    seen: list[Any] = []
    training = ModuleType("open_clip_train.main")
    training.main = lambda words: seen.append((words, theirs.ClipLoss.forward))
    package = ModuleType("open_clip_train")
    monkeypatch.setitem(sys.modules, "open_clip_train", package)
    monkeypatch.setitem(sys.modules, "open_clip_train.main", training)
    monkeypatch.setattr(sys, "argv", ["open_clip", "--model", "ViT-B-32"])
    original = theirs.ClipLoss.forward
    ours.main()
    ours.main(["--siglip"])
    assert seen == [(["--model", "ViT-B-32"], ours.ClipLoss.forward), (["--siglip"], ours.ClipLoss.forward)]
    assert theirs.ClipLoss.forward is original


def test_command_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip_train.main", None)
    with pytest.raises(
        ImportError, match=r'needs open_clip_train .* pip install "open_clip_torch\[training\]"'
    ):
        ours.main([])


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
@pytest.mark.parametrize("bias", [None, -2.0])
def test_second_derivatives_are_the_originals(name: str, bias: float | None) -> None:
    inputs = [*features(dtype=torch.float64), torch.tensor(12.0, dtype=torch.float64)]
    leaves = [x.requires_grad_() for x in inputs]
    bias = None if bias is None else torch.tensor(bias, dtype=torch.float64)

    def penalty(loss: Any) -> list[Tensor]:
        grads = torch.autograd.grad(loss(*leaves, bias), leaves, create_graph=True)
        return [*grads, *torch.autograd.grad(sum(x.square().sum() for x in grads), leaves)]

    expected = penalty(getattr(theirs, name)())
    with pytest.warns(UserWarning, match=f"{name}: a second derivative; computed as the original does"):
        found = penalty(getattr(ours, name)())
    assert_same(found, expected, torch.float64)


def test_function_transforms_go_the_original_way() -> None:
    image, text = features()
    loss = lambda image: ours.ClipLoss()(image, text, torch.tensor(9.0))
    with pytest.warns(UserWarning, match="ClipLoss: a function transform; computed as the original does"):
        found = torch.func.grad(loss)(image)
    torch.testing.assert_close(found / 2, run(loss, image)[1])  # half: its upstream gradient


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_right_kernels_are_asked_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA features go to Triton, others to the native kernels; neither's absence concerns the other."""
    monkeypatch.setattr(ours, "why_not_triton", lambda features: "" if device == "cuda" else "no Triton")
    monkeypatch.setattr(ours._fallback, "why_not", lambda op, features: "" if device == "cpu" else "no core")
    features = Namespace(is_cuda=device == "cuda")
    assert ours._why_not("info_nce", features, None) == ""
