"""Random and hostile arguments, and the comparison of two implementations on them."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

EXAMPLES = int(os.environ.get("CFMVIT_FUZZ_EXAMPLES", 40))  # of each test
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WRONG_DTYPES = (torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn)
SIZES = (0, 1, 2, 3, 5, 8, 17, 33)
FINITE = (0.0, -0.0, 1e-40, 300.0, -300.0)
HOSTILE = (math.nan, math.inf, -math.inf, *FINITE)
REJECTED = (ValueError, TypeError)
# Roundings of the output's dtype, after sums of up to a thousand terms of up to a few hundred.
CLOSE = {
    torch.float64: {"atol": 1e-9, "rtol": 1e-8},
    torch.float32: {"atol": 2e-3, "rtol": 2e-4},
    torch.bfloat16: {"atol": 6e-2, "rtol": 3e-2},
    torch.float16: {"atol": 3e-2, "rtol": 1e-2},
}


class Choices(random.Random):
    """What an example is made of, all from one seed: evenly spread, where a search would dwell on what is rejected."""

    def rarely(self, share: int = 8) -> bool:
        """True once in about `share` times."""
        return self.randrange(share) == 0

    def mostly(self, usual: Sequence[Any], wrong: Sequence[Any]) -> Any:
        """One of `usual`, seldom one of `wrong`."""
        return self.choice(wrong if self.rarely(12) else usual)

    def size(self, least: int = 0) -> int:
        """A length, often an awkward one; seldom 0."""
        return max(least, self.choice(SIZES if self.rarely(4) else SIZES[1:]))

    def generator(self) -> torch.Generator:
        """A source of numbers."""
        return torch.Generator().manual_seed(self.randrange(2**31))


def fuzz(test: Callable[[Choices], None]) -> Callable[[], None]:
    """Run a test on the same examples every time; a failure prints the seed of its example."""

    def run(seed: int) -> None:
        test(Choices(seed))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    # Shrinking a seed would make nothing simpler.
    once = settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate]
    )
    found = once(given(seed=st.integers(0, 2**31 - 1))(run))
    found.example = test  # one of them, for who brings a seed
    return found


def _dense(x: Tensor, gap: float) -> Tensor:
    return x


def _gaps(x: Tensor, gap: float) -> Tensor:
    """Every second place of every axis, with `gap` between."""
    room = torch.full([2 * length + 1 for length in x.shape], gap, dtype=x.dtype)
    view = room[tuple(slice(1, 2 * length, 2) for length in x.shape)]
    return view.copy_(x)


def _last_first(x: Tensor, gap: float) -> Tensor:
    return x.movedim(-1, 0).contiguous().movedim(0, -1) if x.dim() else x


def _channels_last(x: Tensor, gap: float) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 1 else x


def _repeated(x: Tensor, gap: float) -> Tensor:
    return x[:1].expand(x.shape) if x.dim() and len(x) else x


def laid_out(choose: Choices, x: Tensor) -> Tensor:
    """The values of x (of its first sample, where samples share their memory) in some layout."""
    gap = math.nan if x.is_floating_point() else 77
    layout = choose.choice((_dense, _dense, _gaps, _last_first, _channels_last, _repeated))
    return layout(x, gap)


def floating(
    choose: Choices, *shape: int, dtype: torch.dtype = torch.float32, values: Sequence[float] = ()
) -> Tensor:
    """Normal numbers, a few of them replaced by some of `values`."""
    generator = choose.generator()
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if values and x.numel():
        places = torch.randint(0, x.numel(), (choose.randint(1, 3),), generator=generator)
        for place in places:
            x.view(-1)[place] = choose.choice(values)
    return laid_out(choose, x.to(dtype))


def permuted(choose: Choices, batch: int, count: int, kept: int | None = None) -> Tensor:
    """Distinct entries of 0..count-1 in each row, (batch, kept)."""
    generator = choose.generator()
    rows = torch.rand(batch, count, generator=generator).argsort(1)
    kind = choose.choice((torch.int64, torch.int32))
    return laid_out(choose, rows[:, : count if kept is None else kept].to(kind))


def spoiled(choose: Choices, index: Tensor) -> Tensor:
    """An index with an entry that is out of range, negative, enormous or repeated."""
    index = index.clone(memory_format=torch.contiguous_format)
    if index.numel():
        worst = torch.iinfo(index.dtype)
        wrong = choose.choice((-1, index.shape[1], 10**6, worst.max, worst.min, int(index[0, 0])))
        index.view(-1)[choose.randrange(index.numel())] = wrong
    return index


def boxes(choose: Choices, count: int, side: float = 40.0, *, hostile: bool = False) -> Tensor:
    """(count, 4) boxes, partly outside, some without area; hostile ones are inverted, huge or not numbers."""
    generator = choose.generator()
    corners = (torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3) * side
    x = torch.cat([corners.amin(1), corners.amax(1)], 1)
    if count and choose.rarely(3):
        x[0, 2:] = x[0, :2]
    if count and hostile:
        row, column = choose.randrange(count), choose.randrange(4)
        values = (math.nan, math.inf, -math.inf, 1e5, -1e5, 3e9, -3e9, 1e20, 1e38, -1e38)
        x[row, column] = choose.choice(values)
        if choose.rarely(2):
            x[row] = x[row].flip(0)
    return laid_out(choose, x.to(choose.choice((torch.float32, torch.float32, torch.float64))))


def outcome(function: Callable[..., Any], inputs: Sequence[Any], *, backward: bool = True) -> Any:
    """Outputs of `function` and gradients of its floating inputs, or the error that says why there are none."""
    leaves = [
        x.detach().requires_grad_(_learned(x, backward)) if isinstance(x, Tensor) else x for x in inputs
    ]
    try:
        found = function(*leaves)
    except REJECTED as error:
        return error
    outs = [x for x in (found if isinstance(found, tuple) else (found,)) if x is not None]
    some = [x for x in outs if x.requires_grad]
    if some:
        weights = (torch.linspace(0.5, 1.5, max(1, x.numel()), dtype=torch.float64) for x in some)
        total = sum((x.double() * w[: x.numel()].view(x.shape)).sum() for x, w in zip(some, weights))
        total.backward()
    return [x.detach() for x in outs], [x.grad for x in leaves if isinstance(x, Tensor) and x.requires_grad]


def _learned(x: Tensor, backward: bool) -> bool:
    return backward and x.dtype in FLOATS


def assert_alike(found: Any, expected: Any, *, spread: bool = False) -> None:
    """Both are errors of the same op, or the same values and gradients to rounding, NaN and infinities alike.

    Of two faults, each implementation may name another.

    With `spread`, a loss that is not finite may make more of its gradients NaN than expected, but hides none.
    """
    if isinstance(expected, Exception) or isinstance(found, Exception):
        assert isinstance(found, REJECTED), found
        assert isinstance(expected, REJECTED), expected
        assert str(found).partition(":")[0] == str(expected).partition(":")[0]
        return
    pairs = list(zip(found[0] + found[1], expected[0] + expected[1], strict=True))
    # A gradient is as exact as what it came through.
    coarsest = max(
        (CLOSE[x.dtype] for x, _ in pairs if x is not None and x.dtype in CLOSE), key=_rtol, default={}
    )
    for mine, other in pairs:
        if mine is None or other is None:
            known = mine if other is None else other
            assert known is None or not known.any()
            continue
        assert mine.shape == other.shape
        if spread and not all(x.isfinite().all() for x in expected[0]):
            assert not (mine.isfinite() & ~other.isfinite()).any()
        elif mine.dtype in CLOSE:
            torch.testing.assert_close(mine, other.to(mine.dtype), equal_nan=True, **coarsest)
        else:
            assert torch.equal(mine, other)


def _rtol(close: dict[str, float]) -> float:
    return close["rtol"]
