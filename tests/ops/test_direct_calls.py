"""Ops called as torch.ops.cfmvit.*, past the public functions: what they can't take is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, zeros

from cfmvit import ops
from cfmvit.ops.shared import library

pytestmark = pytest.mark.skipif(library.core is None, reason=library.core_missing)

C = torch.ops.cfmvit


def indices(first: int, last: int, batch: int = 2) -> Tensor:
    return torch.arange(first, last).repeat(batch, 1)


@pytest.mark.parametrize(
    ("grad_masked", "match"),
    [
        (zeros(200, 3, 4), r"grad_masked must have shape \(2, 3, 4\), got \(200, 3, 4\)"),
        (zeros(2, 3, 4000), r"grad_masked must have shape \(2, 3, 4\), got \(2, 3, 4000\)"),
        (zeros(2, 2, 4), r"grad_masked must have shape \(2, 3, 4\), got \(2, 2, 4\)"),
        (zeros(2, 3), r"grad_masked must have shape \(2, 3, 4\), got \(2, 3\)"),
        (zeros(2, 3, 4).double(), "grad_masked must have dtype Float, got Double"),
    ],
)
def test_the_second_gradient_of_a_split_is_like_the_first(grad_masked: Tensor, match: str) -> None:
    with pytest.raises(RuntimeError, match=f"split_tokens_backward: {match}"):
        C.split_tokens_backward(zeros(2, 3, 4), grad_masked, indices(0, 3), indices(3, 6), None, True, True)


TOO_MANY: dict[str, Callable[[], Any]] = {
    "gather_tokens_backward": lambda: C.gather_tokens_backward(
        zeros(4, 3, 4), indices(0, 3, 4), None, 2**62, False, True
    ),
    "gather_patches": lambda: ops.gather_patches(zeros(4, 0, 2**31, 2**31), None, 1),
    "gather_patches of no pixels": lambda: ops.gather_patches(zeros(1, 3, 0, 2**31), None, 2**31),
    "gather_patches_backward": lambda: C.gather_patches_backward(
        zeros(1, 0, 3), None, 1, None, 3, 2**40, 2**40
    ),
    "gather_tokens": lambda: ops.gather_tokens(zeros(2**31, 2**31, 0), indices(0, 0, 2**31)),
    "restore_tokens": lambda: ops.restore_tokens(
        zeros(2**31, 0, 2**31), zeros(1).expand(2**31), indices(0, 0, 2**31)
    ),
    "pool_regions": lambda: C.pool_regions(
        zeros(2, 5, 3), zeros(1, 5), 2**32, 2**32, 1.0, 1, 1, 1, True, 5, False
    ),
    "roi_align_backward": lambda: C.roi_align_backward(
        zeros(1, 0, 1, 1), zeros(1, 5), 1.0, 2**31, 0, 2**31, 2**31, 1, True, False
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOO_MANY)
def test_products_of_sizes_that_overflow_are_refused_by_name(case: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=rf"{case.split()[0]}: sizes must .*got \(.*\d{{5}}"):
        TOO_MANY[case]()


@pytest.mark.parametrize("op", ["gather_tokens", "gather_tokens_backward", "info_nce"])
def test_a_meta_tensor_among_others_is_refused(op: str) -> None:
    meta = torch.device("meta")
    calls = {
        "gather_tokens": lambda: C.gather_tokens(zeros(2, 3, 4), indices(0, 2).to(meta), None, None),
        "gather_tokens_backward": lambda: C.gather_tokens_backward(
            zeros(2, 3, 4), indices(0, 3).to(meta), None, 3, True, False
        ),
        "info_nce": lambda: C.info_nce(zeros(2, 3), zeros(2, 3), zeros((), device=meta), 0, 1.0, 1.0, True),
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=f"{op}: all tensors must be on one device, got .* on cpu, .* on meta"
    ):
        calls[op]()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_tensor_of_the_cpu_among_those_of_a_gpu_is_refused_before_a_launch() -> None:
    grad, std = zeros(1, 1, 12, device="cuda"), torch.ones(3, dtype=torch.float64)
    for call in (
        lambda: C.gather_tokens(zeros(2, 3, 4, device="cuda"), indices(0, 2), None, None),
        lambda: C.gather_patches_backward(grad, None, 2, std, 3, 2, 2),
    ):
        with pytest.raises(RuntimeError, match="all tensors must be on one device, got some on c"):
            call()
    torch.cuda.synchronize()
