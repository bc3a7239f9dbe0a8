"""What a benchmark is: an op at a size, what it costs at least, and what it is compared with.

An entry is a function that builds a `Case` from a source of random inputs and the numbers of a size; `benchmark`
registers it under its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from cfmvit.bench.draw import Draw

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Forward without a graph; forward that records one; backward alone, the graph kept; forward and backward together.
PASSES = ("forward", "recorded", "backward", "both")
FAMILIES = ("masking", "reconstruction", "regions", "contrastive", "calls")


@dataclass(frozen=True)
class Cost:
    """Least traffic with the memory and least arithmetic of one call, whatever the implementation."""

    bytes: int
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Peer:
    """What an op is compared with.

    ``dtype`` is the one that it computes in where it does not know the op's. A peer that is not ``alike`` computes something
    else, and its results are not checked.
    """

    run: Callable[..., Any]
    dtype: torch.dtype | None = None
    alike: bool = True


@dataclass(frozen=True)
class Skip:
    """Why a peer is not there."""

    reason: str


@dataclass(frozen=True)
class Case:
    """One op at one size. ``run``, ``truth`` and the peers take ``inputs`` by name and return a tensor or several.

    ``truth`` is called with floating inputs in float64. ``gradients`` names the inputs that get gradients. ``both`` is the cost
    of forward and backward together where that is less than their sum.
    """

    inputs: dict[str, Any]
    run: Callable[..., Any]
    truth: Callable[..., Any]
    forward: Cost
    backward: Cost | None = None
    both: Cost | None = None
    gradients: tuple[str, ...] = ()
    peers: dict[str, Peer | Skip] = field(default_factory=dict)

    def cost(self, name: str) -> Cost:
        """Return the least cost of a pass."""
        if name in ("forward", "recorded") or self.backward is None:
            return self.forward
        return self.backward if name == "backward" else self.both or self.forward + self.backward


@dataclass(frozen=True)
class Entry:
    """A registered benchmark; ``gate_size``: size -> the smaller one at which its results are checked."""

    name: str
    family: str
    sizes: Mapping[str, Mapping[str, int]]
    build: Callable[..., Case]
    gate_size: Mapping[str, str]
    dtypes: tuple[str, ...]

    @property
    def passes(self) -> tuple[str, ...]:
        """Passes that are measured unless others are asked for."""
        return ("forward", "recorded") if self.family == "calls" else ("forward", "backward", "both")

    def case(self, size: str, dtype: torch.dtype, device: str) -> Case:
        """Build the case of a size, the same numbers each time."""
        return self.build(Draw(dtype, torch.device(device)), **self.sizes[size])


ENTRIES: dict[str, Entry] = {}


def benchmark(
    family: str,
    *,
    gate_size: Mapping[str, str] | None = None,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    **sizes: Mapping[str, int],
) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Register the function that builds the cases of an op, under the function's name.

    Args:
        family: one of ``FAMILIES``.
        gate_size: size -> the smaller size at which its results are checked.
        dtypes: those that make a difference to it.
        sizes: name -> arguments of the function. "tiny" is for tests, "small" for CPUs, "large" for GPUs, "any" for both;
            others run only when they are asked for.
    """

    def add(build: Callable[..., Case]) -> Callable[..., Case]:
        ENTRIES[build.__name__] = Entry(build.__name__, family, sizes, build, gate_size or {}, dtypes)
        return build

    return add


def peer(
    library: str, run: Callable[[ModuleType], Callable[..., Any]], dtype: torch.dtype | None = None
) -> Peer | Skip:
    """Return the peer that ``run`` makes of a module, or the reason why the module can't be had."""
    try:
        return Peer(run(importlib.import_module(library)), dtype)
    except ImportError as error:
        return Skip(str(error))


def load() -> dict[str, Entry]:
    """Return all entries."""
    for family in FAMILIES:
        importlib.import_module(f"cfmvit.bench.{family}")
    return ENTRIES
