"""siglip_loss on one device and over two processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cfmvit.ops import siglip_loss
from cfmvit.ops.contrastive import reference


def inputs(rows: int, dtype: torch.dtype = torch.float64, width: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    image, text = (
        F.normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=1)
        for _ in range(2)
    )
    scalars = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        image.to(dtype),
        text.to(dtype),
        torch.tensor(10.0, dtype=scalars),
        torch.tensor(-6.0, dtype=scalars),
    ]


def dense(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return reference.sigmoid_loss(image, text, scale, bias, 0) / len(image)


def loss_and_grads(loss_fn, tensors: list[Tensor], **options) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    loss = loss_fn(*leaves, **options)
    (3 * loss).backward()
    return [loss.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("rows", [1, 2, 31, 130, 530], ids="B{}".format)
def test_equals_the_definition(rows: int, impl: str) -> None:
    tensors = inputs(rows)
    for a, e in zip(
        loss_and_grads(siglip_loss, tensors, impl=impl), loss_and_grads(dense, tensors), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)
    total = siglip_loss(*tensors, reduction="sum", impl=impl)
    torch.testing.assert_close(total, dense(*tensors) * rows)


TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 3e-3}  # half an ulp of the results


@pytest.mark.parametrize("bias", [-10.0, 0.0, 30.0])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_low_precision_features(dtype: torch.dtype, bias: float) -> None:
    tensors = [*inputs(200, dtype)[:3], torch.tensor(bias)]
    expected = loss_and_grads(dense, [x.double() for x in tensors])
    actual = loss_and_grads(siglip_loss, tensors)
    assert [x.dtype for x in actual] == [torch.float32, dtype, dtype, torch.float32, torch.float32]
    for a, e in zip(actual, expected, strict=True):
        assert (a.double() - e).norm() <= TOLERANCES[dtype] * e.norm()


def test_equals_open_clip() -> None:
    loss = pytest.importorskip("open_clip.loss").SigLipLoss()
    tensors = inputs(96, torch.float32)
    for a, e in zip(loss_and_grads(siglip_loss, tensors), loss_and_grads(loss, tensors), strict=True):
        torch.testing.assert_close(a, e, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("bias", [-10.0, 1e6, -1e15])
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e6, 1e15])
def test_gradients_are_as_exact_as_plain_ones_for_logits_of_any_size(
    scale: float, bias: float, impl: str
) -> None:
    image, text, *_ = inputs(90, torch.float32)
    for features in ((image, text, scale), (image * scale**0.5, text * scale**0.5, 1.0)):
        tensors = [*features[:2], torch.tensor(features[2]), torch.tensor(bias)]
        exact, plain = loss_and_grads(dense, [x.double() for x in tensors]), loss_and_grads(dense, tensors)
        for a, b, e in zip(loss_and_grads(siglip_loss, tensors, impl=impl), plain, exact, strict=True):
            assert a.isfinite().all()
            # Twice: a logit close to zero is rounded at the size of its terms, by either in its own way.
            assert (a.double() - e).norm() <= max(2 * (b.double() - e).norm(), 2e-6 * e.norm())


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # opcheck's own access
def test_gradcheck_and_opcheck() -> None:
    tensors = [x.requires_grad_() for x in inputs(5, width=4)]
    assert torch.autograd.gradcheck(siglip_loss, tensors)
    op = torch.ops.cfmvit.sigmoid_loss.default
    torch.library.opcheck(op, (*tensors, 0, True, True))
    torch.library.opcheck(op, (*(x.bfloat16() for x in inputs(5)), 0, False, True))
    (grad,) = torch.autograd.grad(siglip_loss(*tensors), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_no_bias_and_frozen_towers() -> None:
    image, text, scale, bias = inputs(9, torch.float32)
    torch.testing.assert_close(siglip_loss(image, text, scale), siglip_loss(image, text, scale, 0 * bias))
    expected = loss_and_grads(siglip_loss, [image, text, scale, bias])
    text.requires_grad_()
    (3 * siglip_loss(image, text, scale, bias)).backward()
    assert image.grad is None
    assert torch.equal(text.grad, expected[2])


def test_bad_features_give_a_nan_loss() -> None:
    image, text, scale, bias = inputs(40, torch.float32)
    image[3, 1] = float("nan")
    loss, *grads = loss_and_grads(siglip_loss, [image, text, scale, bias])
    assert loss.isnan()
    assert grads[0].isnan().any(1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    tensors = inputs(1100, dtype)
    threads = torch.get_num_threads()
    try:
        runs = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            runs.append(loss_and_grads(siglip_loss, tensors))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, e) for a, e in zip(run, runs[0], strict=True))


def test_no_logits_matrix_in_memory() -> None:
    code = """if True:
        import resource, torch
        from cfmvit.ops import siglip_loss
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        def step(rows):
            image, text = (torch.randn(rows, 16, requires_grad=True) for _ in range(2))
            siglip_loss(image, text, torch.tensor(2.0)).backward()
        step(64)
        before = peak()
        step(12_000)
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150  # the logits would take 576


def test_the_backward_only_scales() -> None:
    """It makes nothing of the towers' size but the two gradients."""

    class Sizes(TorchDispatchMode):
        made: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.made += [str(func) for x in tree_leaves(out) if isinstance(x, Tensor) and x.numel() > 1]
            return out

    leaves = [x.requires_grad_() for x in inputs(9, torch.float32)]
    loss = siglip_loss(*leaves)
    with Sizes() as sizes:
        torch.autograd.grad(loss, leaves)
    assert sizes.made == ["cfmvit.sigmoid_loss_backward.default"] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(text=torch.ones(5, 3)), "text must have image's 4 rows, got 5"),
        (dict(text=torch.ones(4, 2)), "text must have image's width 3, got 2"),
        (dict(logit_bias=torch.ones(1)), r"logit_bias must be 0-d, got shape \(1,\)"),
        (dict(reduction="none"), "reduction must be 'mean' or 'sum', got 'none'"),
        (dict(process_group=object()), "process_group must belong to an initialised torch.distributed"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_refusals(change: dict, message: str) -> None:
    good = dict(image=torch.ones(4, 3), text=torch.ones(4, 3), logit_scale=torch.tensor(1.0))
    with pytest.raises(ValueError, match=f"siglip_loss: {message}"):
        siglip_loss(**{**good, **change})
