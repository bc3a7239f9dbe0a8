"""Every op, called as torch.ops.cfmvit.*, past the public functions, with whatever its schema takes: it answers or raises."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pytest
import torch

from cfmvit.ops.shared import library

from . import test_ops
from .direct import attack, bounded_memory, recorded_calls, registered
from .hostile import Choices

pytestmark = pytest.mark.skipif(library.core is None, reason=library.core_missing)


def other_ways(choose: Choices) -> None:
    """Calls of ops that the tests of public functions on one process do not reach."""
    count, width = choose.size(1), choose.size(1)
    hidden, weight, bias = (torch.randn(n).requires_grad_() for n in ((count, 3), (width, 3), (width,)))
    total, *_ = C.linear_masked_cosine_sum(hidden, weight, bias, torch.randn(count, width), 1e-8, True, True)
    total.backward()
    sums = [torch.rand(count).requires_grad_() for _ in range(5)]
    loss, *_ = C.pair_loss(*sums, torch.tensor(2.0), 0.5, 0.5, True)
    loss.backward()


C = torch.ops.cfmvit
CASES = int(os.environ.get("CFMVIT_FUZZ_CASES", 150))  # of each op
EXAMPLES: tuple[Callable[[Choices], None], ...] = (
    other_ways,
    *(test.example for test in vars(test_ops).values() if hasattr(test, "example")),
)


def run(name: str, cases: int) -> int:
    calls = recorded_calls(EXAMPLES, 8)
    assert name in calls, f"no public function that test_ops.py fuzzes calls {name}"
    with bounded_memory():
        return attack(name, calls[name], cases)


@pytest.mark.parametrize("name", registered())
def test_direct_calls(name: str, record_property: Callable[[str, object], None]) -> None:
    answered = run(name, CASES)
    if CASES >= 500:
        record_property("fuzzed", f"{name}: {CASES:,} cases, {answered:,} answered")
    assert answered


@pytest.mark.parametrize("name", registered())
def test_no_tensor_may_lie_elsewhere(name: str) -> None:
    """An index, a mean of the CPU beside tensors of a GPU would be read by a kernel as its own memory: each argument is tried, in what
    is called for tensors without data and in the native function itself.
    """
    op = getattr(C, name).default
    native = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    tensors = [i for i, argument in enumerate(op._schema.arguments) if "Tensor" in str(argument.type)]
    # Of the calls the one with most tensors: what there is of them must disagree.
    arguments = max(
        recorded_calls(EXAMPLES, 8)[name], key=lambda call: sum(call[i] is not None for i in tensors)
    )
    for place in tensors:
        value, worse = arguments[place], list(arguments)
        if isinstance(value, (list, tuple)):
            worse[place] = [*value[:-1], value[-1].to("meta")]
        else:
            worse[place] = torch.zeros(1, device="meta") if value is None else value.to("meta")
        if len(tensors) > 1:
            for call in (op, partial(op.redispatch, native)):
                with pytest.raises(
                    (RuntimeError, ValueError), match=f"{name}: all tensors must be on one device"
                ):
                    call(*worse)


@pytest.mark.long
@pytest.mark.parametrize("name", registered())
def test_many_direct_calls(name: str, record_property: Callable[[str, object], None]) -> None:
    """Each family has eight ops or more, so 20,000 cases at least."""
    cases = 2_500
    answered = run(name, cases)
    record_property("fuzzed", f"{name}: {cases:,} cases, {answered:,} answered")
