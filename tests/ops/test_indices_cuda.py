"""Indices and noise on a GPU, whose values no op looks at unless it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cfmvit import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible"),
]


@pytest.fixture
def checked() -> Iterator[None]:
    ops.check_indices()
    yield
    ops.check_indices(False)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="cuda")


def numbers(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, device="cuda")


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "random_masking": (
        lambda: ops.random_masking(1, 2, 0.5, noise=zeros(1, 2) / 0),
        "noise must not hold NaN, got 2",
    ),
    "gather_tokens": (lambda: ops.gather_tokens(zeros(1, 4, 8), numbers([0, 4])), r"must lie in 0\.\.3, got 4"),
    "restore_tokens": (
        lambda: ops.restore_tokens(zeros(1, 2, 8), zeros(8), numbers([0, 1, 1])),
        "must not repeat an entry, got 1 twice in row 0",
    ),
    "gather_patches": (
        lambda: ops.gather_patches(zeros(1, 3, 8, 8), numbers([-1]), 4),
        r"must lie in 0\.\.3, got -1",
    ),
    "masked_cosine_loss": (
        lambda: ops.masked_cosine_loss(zeros(2, 4, 8), zeros(2, 4, 8), numbers([0, 1], [2, 2])),
        "index must not repeat an entry, got 2 twice in row 1",
    ),
    "linear_masked_cosine_loss": (
        lambda: ops.linear_masked_cosine_loss(
            zeros(1, 4, 8), zeros(8, 8), None, zeros(1, 4, 8), numbers([9])
        ),
        r"index must lie in 0\.\.3, got 9",
    ),
    "masked_pixel_loss": (
        lambda: ops.masked_pixel_loss(zeros(1, 4, 48), zeros(1, 3, 8, 8), numbers([1 << 40]), 4),
        r"index must lie in 0\.\.3, got 1099511627776",
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", CALLS)
def test_a_bad_value_is_named_when_asked_for(op: str, checked: None) -> None:
    call, message = CALLS[op]
    with pytest.raises(ValueError, match=f"{op}: .*{message}"):
        call()


@pytest.mark.parametrize("op", CALLS)
def test_values_that_no_check_has_seen_are_harmless(op: str) -> None:
    found = CALLS[op][0]()
    torch.cuda.synchronize()
    assert all(x.isfinite().all() for x in (found if isinstance(found, tuple) else (found,)))
