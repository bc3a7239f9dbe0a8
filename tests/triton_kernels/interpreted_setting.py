"""What the tests of the contrastive kernels under Triton's interpreter share.

test_interpreted.py runs them in a process of its own: TRITON_INTERPRET must be set before triton is imported. Blocks are made
small, so that every loop runs more than once; features lie between NaNs, so that a read out of bounds shows.

Time goes by tiles, each some tens of milliseconds: `long` are those combinations that a GPU is not given (float32 by
descriptors), or that differ from a short one in how matrices arrive alone.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.runtime import interpreter

from cfmvit.ops.contrastive import reference
from cfmvit.triton_kernels import contrastive, contrastive_config, contrastive_tiles

# float32: sums that cancel; float16: half an ulp of the stored gradients by logits and of the result.
TOLERANCES = {torch.float32: 5e-5, torch.float16: 1e-3}


long = pytest.mark.long


def variants(*more: Any) -> Any:
    """Every way to give matrices, dtype and value of `more`; short are one with each dtype, which share no value of `more`."""
    short = {(False, torch.float32, *more[:1]), (True, torch.float16, *more[-1:])}
    cases = itertools.product((False, True), TOLERANCES, *([more] if more else []))
    return [pytest.param(*case, marks=() if case in short else long) for case in cases]


@pytest.fixture(params=[pytest.param(False, id="pointers"), pytest.param(True, id="descriptors", marks=long)])
def descriptors(request: pytest.FixtureRequest) -> bool:
    """Whether matrices are given by descriptors."""
    return request.param


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch, descriptors: bool) -> None:
    monkeypatch.setattr(contrastive_config, "FORWARD_ROWS", 128)
    monkeypatch.setattr(contrastive_config, "WORKSPACE_BYTES", 200 * 128 * 2)
    config_for = contrastive_config.config_for
    monkeypatch.setattr(
        contrastive_config, "config_for", lambda *args: config_for(*args)._replace(descriptors=descriptors)
    )


def features(rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = F.normalize(torch.randn(rows, width, generator=generator), dim=1).to(dtype)
    guarded = torch.full((rows + 2, width), float("nan"), dtype=dtype)
    guarded[1:-1] = values
    return guarded[1:-1]


def lse_of(logit_scale: Tensor, shift: Tensor, total: Tensor) -> Tensor:
    """Log-sum-exps in float64."""
    return torch.where(
        total == 0, float("-inf"), logit_scale.double() * shift.double() + total.double().log()
    )


@pytest.fixture
def products_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's matrix products as exact as float32 can hold them."""

    def dot(self, a, b, d, precision, imprecise):
        exact = np.matmul(a.data, b.data, dtype=np.float64) + d.data
        return interpreter.TensorHandle(exact.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def as_bfloat16(b_x: tl.tensor, dtype: tl.dtype) -> tuple[tl.tensor, tl.tensor]:
    """The nearest bfloat16, ties to even, held in float32: the interpreter's own numbers are not bfloat16's."""
    bits = b_x.to(tl.int32, bitcast=True)
    b_rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return b_rounded, b_rounded


@pytest.fixture
def rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 features, whose gradients by logits are rounded to bfloat16 as they are stored."""
    monkeypatch.setattr(contrastive_tiles, "rounded", as_bfloat16)
    monkeypatch.setattr(contrastive_config, "rounds_gradients", lambda features: True)


def check(image: Tensor, text: Tensor, scale: float, label_offset: int | None, tolerance: float) -> None:
    rows, texts = len(image), len(text)
    logit_scale = torch.tensor(float(scale))
    groups = torch.arange(rows) % 3, torch.arange(texts) % 5
    leaves = [x.double().requires_grad_() for x in (image, text, logit_scale)]
    expected = reference.contrastive_lse(*leaves, label_offset, *groups)
    actual = contrastive.contrastive_lse(image, text, logit_scale, label_offset, *groups)
    close = dict(rtol=1e-5, atol=2e-5 * max(1.0, scale / 20))
    for at in (0, 5, 6):
        torch.testing.assert_close(scale * actual[at].double(), scale * expected[at].detach(), **close)
    for at in (1, 3):
        lse = lse_of(logit_scale, *(x.detach() for x in expected[at : at + 2]))
        torch.testing.assert_close(lse_of(logit_scale, *actual[at : at + 2]), lse, **close)
    plain = contrastive.contrastive_lse(image, text, logit_scale, label_offset)
    assert all(torch.equal(a, e) for a, e in zip(plain[:5], actual[:5], strict=True))
    assert plain[5].shape == plain[6].shape == (0,)

    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(n, generator=generator) / 8 for n in (len(expected[0]), rows, texts)]
    total = (grads[0].double() * expected[0]).sum()
    for grad, x in zip(grads[1:], (expected[2], expected[4]), strict=True):
        total = total + (grad.double() * torch.where(x == 0, 1, x).log()).sum()
    expected_grads = torch.autograd.grad(total, leaves)
    by_sums = [g / torch.where(x == 0, 1, x) for g, x in zip(grads[1:], (actual[2], actual[4]), strict=True)]
    args = (image, text, logit_scale, label_offset, actual[1], actual[3], grads[0], *by_sums, True, True)
    actual_grads = contrastive.contrastive_lse_backward(*args)
    for a, e, x in zip(actual_grads, expected_grads, (image, text, logit_scale), strict=True):
        assert a.dtype == x.dtype
        assert (a.double() - e).norm() <= tolerance * e.norm()
    if image.dtype == torch.float32:
        return
    for a, e in zip(contrastive.contrastive_lse_backward(*args, True)[:2], actual_grads, strict=False):
        assert a.dtype == torch.float32
        assert torch.equal(a.to(e.dtype), e)
