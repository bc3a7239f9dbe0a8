"""Direct calls of every registered op: calls that the public functions make, with some arguments replaced by worse ones."""

from __future__ import annotations

import os
import resource
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .hostile import FLOATS, HOSTILE, Choices

WRONG_DTYPES = (*FLOATS, torch.int64, torch.int32, torch.bool, torch.complex64, torch.uint8)
# AddressSanitizer's operator new ends the process where there is no such memory: there, only what no vector takes.
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
# Products of two or three of them overflow 63 bits; none alone can be memory.
ENORMOUS = (2**62, 2**63 - 1) if SANITIZED else (2**31, 2**40, 2**62, 2**63 - 1)
NUMBERS = (0, -1, 1, 2, 7, *ENORMOUS, -(2**63))
REFUSED = (RuntimeError, ValueError, TypeError, NotImplementedError, MemoryError, IndexError)


class Recorded(TorchDispatchMode):
    """Keeps the arguments of this library's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if func.namespace == "cfmvit":
            self.calls[func._schema.name.partition("::")[2]].append(tuple(args))
        return out


@cache
def recorded_calls(
    examples: tuple[Callable[[Choices], None], ...], count: int
) -> dict[str, list[tuple[Any, ...]]]:
    """What `examples`, each run with `count` seeds, call each op with."""
    with Recorded() as recorded:
        for example in examples:
            for seed in range(count):
                with suppress(
                    *REFUSED, AssertionError
                ):  # under a mode, errors are not yet the public functions'
                    example(Choices(seed))
    return recorded.calls


def registered() -> list[str]:
    """The names of all ops that the library's schemas define."""
    return sorted(
        schema.name.partition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("cfmvit::")
    )


def worse_shape(choose: Choices, shape: list[int]) -> list[int]:
    shape = list(shape)
    kind = choose.randrange(6)
    place = choose.randrange(len(shape)) if shape else 0
    if not shape or kind == 0:
        shape.insert(place, choose.choice((0, 1, 2, 3)))
    elif kind == 1:
        del shape[place]
    elif kind == 2:
        shape[place] = choose.choice(
            (0, 1, shape[place] + 1, 2 * shape[place] + 1, max(0, shape[place] - 1), 300)
        )
    elif kind == 3:
        choose.shuffle(shape)
    else:  # no elements, so any other sizes
        shape = [choose.choice((*ENORMOUS[:2], n)) for n in shape]
        shape[place] = 0
    return shape


def worse_tensor(choose: Choices, x: Tensor) -> Tensor | None:
    kind = choose.randrange(8)
    if kind == 0:
        return x.to("meta")
    if kind == 1:
        return x.to(choose.choice(WRONG_DTYPES))
    if kind == 2 and x.numel():  # values: indices, boxes and scales
        x = x.clone(memory_format=torch.contiguous_format)
        whole = x.dtype in (torch.int32, torch.int64)
        values = (-1, 1, 7, 10**6, torch.iinfo(x.dtype).max) if whole else HOSTILE
        x.view(-1)[choose.randrange(x.numel())] = choose.choice(values)
        return x
    if kind == 3 and x.dim():  # layouts
        gaps = x.new_zeros([2 * n + 1 for n in x.shape])[tuple(slice(1, 2 * n, 2) for n in x.shape)]
        return gaps.copy_(x) if choose.rarely(2) else x.movedim(0, -1).contiguous().movedim(-1, 0)
    if kind == 4 and x.is_floating_point() and not SANITIZED:
        # More numbers than memory; the ops read indices one by one.
        shape = [choose.choice((n, 2**31)) for n in x.shape]
        return x.new_ones(()).expand(shape)
    return x.new_ones(worse_shape(choose, list(x.shape)))


def worse(choose: Choices, value: Any) -> Any:
    if isinstance(value, Tensor):
        return worse_tensor(choose, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return choose.choice((*NUMBERS, value + 1, value - 1, 2 * value))
    if isinstance(value, float):
        return choose.choice((*HOSTILE, -1.0, 1e308))
    if isinstance(value, torch.dtype):
        return choose.choice(WRONG_DTYPES)
    if isinstance(value, (list, tuple)) and value:
        value, place = list(value), choose.randrange(len(value))
        if choose.rarely(3):
            return value[:place] if choose.rarely(2) else [*value, value[place]]
        value[place] = worse(choose, value[place])
        return value
    return value


def worsened(
    choose: Choices, call: tuple[Any, ...], optional: list[bool], other: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The call with up to three arguments worse, absent, or those of another call."""
    arguments = list(call)
    for _ in range(choose.choice((0, 1, 1, 1, 2, 3))):
        place = choose.randrange(len(arguments))
        if choose.rarely(4):
            arguments[place] = other[place]
        elif optional[place] and choose.rarely(4):
            arguments[place] = None
        else:
            arguments[place] = worse(choose, arguments[place])
    return tuple(arguments)


def tensors(values: Any) -> list[Tensor]:
    found = []
    for x in values:
        found += [x] if isinstance(x, Tensor) else tensors(x) if isinstance(x, (list, tuple)) else []
    return found


@contextmanager
def bounded_memory(gigabytes: int = 2) -> Iterator[None]:
    """What asks for much more memory than there is in use is refused, rather than given and then filled."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + gigabytes * 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def attack(name: str, calls: list[tuple[Any, ...]], count: int) -> int:
    """Call the op `count` times; it answers or raises. Returns how many calls it answered."""
    op = getattr(torch.ops.cfmvit, name).default
    optional = [argument.type.kind() == "OptionalType" for argument in op._schema.arguments]
    answered = 0
    for seed in range(count):
        choose = Choices(f"{name} {seed}")
        try:
            arguments = worsened(choose, choose.choice(calls), optional, choose.choice(calls))
        except REFUSED:  # by torch itself
            continue
        devices = {x.device.type for x in tensors(arguments)}
        try:
            out = op(*arguments)
        except REFUSED:
            continue
        answered += 1
        results = tensors(out if isinstance(out, (list, tuple)) else [out])
        assert len(devices) == 1, f"{name}, seed {seed}: answered with tensors on {devices}"
        assert {x.device.type for x in results} <= devices, f"{name}, seed {seed}"
        for x in results:  # all of it is there
            if devices == {"cpu"} and x.numel():
                x[tuple(n - 1 for n in x.shape)].item()
    return answered
