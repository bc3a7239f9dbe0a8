"""Every op under ``torch.func`` and forward-mode differentiation gives what it gives outside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad

from cfmvit import ops
from cfmvit.ops.shared import library
from tests.ops.samples import Sample, public

SAMPLES = public()
each = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


def jacobians(sample: Sample, **options: Any) -> list[Tensor]:
    """Rows of the Jacobians, each by a backward pass outside of any transform."""
    values = [x.clone().requires_grad_() for x in sample.values.values()]
    out = sample(*values, **options)
    rows = [
        torch.autograd.grad(x, values, retain_graph=True, allow_unused=True, materialize_grads=True)
        if x.requires_grad
        else [torch.zeros_like(value) for value in values]
        for x in out
    ]
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def tangents(sample: Sample) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in sample.values.values())


def along(jacobian: list[Tensor], directions: tuple[Tensor, ...]) -> Tensor:
    return sum(j.reshape(len(j), -1) @ t.flatten() for j, t in zip(jacobian, directions, strict=True))


def batched(sample: Sample, size: int = 2) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Values that differ in each slice along dimension 0, and indices in another order of samples in each."""
    generator = torch.Generator().manual_seed(2)
    values = [
        torch.stack([x, *(x * (1 + 0.1 * torch.rand(x.shape, generator=generator)) for _ in range(size - 1))])
        for x in sample.values.values()
    ]
    return values, {
        name: torch.stack([x.roll(i, 0) for i in range(size)]) for name, x in sample.indices.items()
    }


def test_there_is_a_sample_of_every_op() -> None:
    functions = {name for name in ops.__all__ if name.islower() and name != "check_indices"}
    assert functions == {sample.op for sample in SAMPLES}


@each
def test_forward_mode(sample: Sample) -> None:
    jacobian, directions = jacobians(sample), tangents(sample)
    values = tuple(sample.values.values())
    out, tangent = func.jvp(sample, values, directions)
    close(out, sample())
    close(tangent, along(jacobian, directions))
    with forward_ad.dual_level():
        dual = sample(*(forward_ad.make_dual(x, t) for x, t in zip(values, directions, strict=True)))
        tangent = forward_ad.unpack_dual(dual).tangent
        # One of them alone: each is asked, not the first.
        last = sample(*values[:-1], forward_ad.make_dual(values[-1], directions[-1]))
        last = forward_ad.unpack_dual(last).tangent
    expected = along(jacobian, directions)
    close(torch.zeros_like(expected) if tangent is None else tangent, expected)
    expected = along(jacobian[-1:], directions[-1:])
    close(torch.zeros_like(expected) if last is None else last, expected)


@each
def test_jacobians(sample: Sample) -> None:
    values, expected = tuple(sample.values.values()), jacobians(sample)
    argnums = tuple(range(len(values)))
    for transform in (func.jacfwd, func.jacrev):
        close(transform(sample, argnums)(*values), tuple(expected))


@each
def test_vmap_with_other_indices_in_each_slice(sample: Sample) -> None:
    values, indices = batched(sample)

    def run(values: list[Tensor], indices: dict[str, Tensor]) -> Tensor:
        return sample(*values, indices=indices)

    slices = [([x[i] for x in values], {k: x[i] for k, x in indices.items()}) for i in range(2)]
    expected = torch.stack([run(*some) for some in slices], 1)
    close(func.vmap(run, out_dims=1)(values, indices), expected)
    moved = [x.movedim(0, -1) for x in values]
    close(func.vmap(run, in_dims=(-1, 0), out_dims=1)(moved, indices), expected)
    # Values alone, and indices alone.
    close(func.vmap(run, (0, None), 1)(values, slices[0][1])[:, 0], expected[:, 0])
    if indices:
        close(func.vmap(run, (None, 0), 1)(slices[1][0], indices)[:, 1], expected[:, 1])
        twice = func.vmap(func.vmap(run, (0, None)), (None, 0))(values, indices)
        close(twice[1, 1], expected[:, 1])


@each
def test_gradients_of_each_slice(sample: Sample) -> None:
    values, indices = batched(sample)
    argnums = tuple(range(len(values)))

    def total(*values: Tensor, indices: dict[str, Tensor]) -> Tensor:
        return sample(*values, indices=indices).square().sum()

    run = lambda values, indices: func.grad(total, argnums)(*values, indices=indices)
    found = func.vmap(run)(values, indices)
    for i in range(2):
        leaves = [x[i].clone().requires_grad_() for x in values]
        out = total(*leaves, indices={k: x[i] for k, x in indices.items()})
        expected = [torch.zeros_like(x) for x in leaves]
        if out.requires_grad:
            expected = torch.autograd.grad(out, leaves, allow_unused=True, materialize_grads=True)
        close([x[i] for x in found], list(expected))


@each
def test_second_derivatives(sample: Sample) -> None:
    total = lambda *values, **options: sample(*values, **options).square().sum()
    values, directions = tuple(sample.values.values()), tangents(sample)
    argnums = tuple(range(len(values)))
    leaves = [x.clone().requires_grad_() for x in values]
    first = (
        torch.autograd.grad(
            total(*leaves, impl="reference"),
            leaves,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        if sample.op != "random_masking"
        else [x * 0 for x in leaves]
    )
    dot = sum((x * t).sum() for x, t in zip(first, directions, strict=True))
    expected = torch.autograd.grad(dot, leaves, allow_unused=True, materialize_grads=True)
    close(func.jvp(func.grad(total, argnums), values, directions)[1], tuple(expected))
    by_reverse = func.grad(lambda *values: func.jvp(total, values, directions)[1], argnums)(*values)
    close(by_reverse, tuple(expected))


@each
def test_gradcheck_in_all_modes(sample: Sample) -> None:
    if sample.label == "stats" or sample.op == "random_masking":
        return  # some results are constants by intent
    values = [x.clone().requires_grad_() for x in sample.values.values()]
    assert torch.autograd.gradcheck(
        sample,
        values,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=sample.op != "multilevel_roi_align",
        check_batched_forward_grad=True,
    )


@each
def test_a_native_op_is_refused_where_it_can_not_serve(sample: Sample) -> None:
    values = tuple(sample.values.values())
    total = lambda *values: sample(*values, impl="native").sum()
    for run in (lambda: func.grad(total)(*values), lambda: func.vmap(total)(*(x[None] for x in values))):
        with pytest.raises((RuntimeError, ValueError), match=f"^{sample.op}: impl .*'native'"):
            run()
    refused = (
        f"^{sample.op}: impl 'native' is not available under forward-mode differentiation; impl='reference'"
    )
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=refused):
        total(*values)


def test_indices_are_looked_at_below_vmap() -> None:
    tokens = torch.randn(2, 4, 3)
    for wrong in (4, -1):
        index = torch.tensor([[[0, 1], [1, 2]], [[0, 1], [1, wrong]]])
        for dim in (0, 1):
            with pytest.raises(ValueError, match=rf"^gather_tokens: index must lie in 0\.\.3, got {wrong}"):
                func.vmap(ops.gather_tokens, (None, dim))(tokens, index.movedim(0, dim))
    twice = torch.tensor([[[0, 1], [1, 2]], [[0, 1], [2, 2]]])
    with pytest.raises(ValueError, match="index must not repeat an entry, got 2 twice"):
        func.vmap(ops.masked_cosine_loss, (None, None, 0))(tokens, tokens, twice)


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_masks_are_drawn_as_vmap_is_told(randomness: str) -> None:
    run = lambda x: ops.random_masking(2, 64, 0.5).keep + 0 * x
    first, second = func.vmap(run, randomness=randomness)(torch.zeros(2, dtype=torch.int64))
    assert torch.equal(first, second) == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        func.vmap(run)(torch.zeros(2, dtype=torch.int64))


def direct(sample_of: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """An op of the library called by itself, and its differentiable arguments."""
    op, values = getattr(torch.ops.cfmvit, sample_of), torch.randn(4, 3, dtype=torch.float64)
    scale, weights = torch.tensor(2.0, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "gather_tokens": (lambda x, p: op(x, torch.tensor([[2, 0]]), p, None), (values[None], values.cos())),
        "multilevel_roi_align": (
            lambda x, y: op([x, y], torch.tensor([[0.0, 0, 0, 2, 2]], dtype=x.dtype), torch.tensor([1]),
                            [1.0, 0.5], 2, 2, 2, True),
            (values[None, None], values[None, None, :2]),
        ),
        "linear_masked_cosine_sum": (
            lambda h, w: op(h, w, None, values, 1e-8, True, True)[0], (values, torch.eye(3).double() + values[:3])
        ),
        "score_regions": (
            lambda x, y: op(x, y, None, weights, None, scale, scale, 1.0, True), (values, values.sin())
        ),
        "info_nce": (lambda x, y: op(x, y, scale, 0, 0.5, 0.5, True)[0], (values, values.sin())),
        "sigmoid_loss": (lambda x, y: op(x, y, scale, scale, 0, True, True)[0], (values, values.sin())),
    }  # fmt: skip
    return calls[sample_of]


@pytest.mark.skipif(library.core is None, reason=library.core_missing)
@pytest.mark.parametrize(
    "name",
    [
        "gather_tokens",
        "multilevel_roi_align",
        "linear_masked_cosine_sum",
        "score_regions",
        "info_nce",
        "sigmoid_loss",
    ],
)
def test_ops_called_by_themselves(name: str) -> None:
    call, values = direct(name)
    leaves = [x.clone().requires_grad_() for x in values]
    expected = torch.autograd.grad(call(*leaves).cos().sum(), leaves)
    close(func.grad(lambda *xs: call(*xs).cos().sum(), (0, 1))(*values), expected)
    along = sum((x * t).sum() for x, t in zip(expected, values, strict=True))
    close(func.jvp(lambda *xs: call(*xs).cos().sum(), values, values)[1], along)
    with forward_ad.dual_level():
        dual = call(*(forward_ad.make_dual(x, x) for x in values)).cos().sum()
        close(forward_ad.unpack_dual(dual).tangent, along)
    batch = [torch.stack([x, x * 1.5]) for x in values]
    close(func.vmap(call)(*batch), torch.stack([call(*(x[i] for x in batch)) for i in range(2)]))


@pytest.mark.skipif(library.core is None, reason=library.core_missing)
def test_a_backward_op_refuses_its_own_derivatives_and_loops_under_vmap() -> None:
    grad, index = torch.randn(2, 3, 2, 4), torch.tensor([[0, 2], [1, 3], [3, 0]])
    run = lambda grad: torch.ops.cfmvit.gather_tokens_backward(grad, index, None, 4, True, False)[0]
    assert torch.equal(func.vmap(run)(grad), torch.stack([run(x) for x in grad]))
    refused = pytest.raises(
        RuntimeError, match=r"^gather_tokens: double backward is not supported; impl='reference'"
    )
    with refused:
        func.jvp(run, (grad[0],), (grad[1],))
    with refused:
        func.grad(lambda x: run(x).sum())(grad[0])
