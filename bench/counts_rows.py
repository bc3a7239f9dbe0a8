"""How a kernel's time on an H200 follows from what it compiles to and what it moves: the lines of `docs/kernel-counts.md`."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cfmvit.bench import sass
from cfmvit.bench.registry import ENTRIES
from cfmvit.bench.tables import duration

MULTIPROCESSORS, CLOCK, ISSUE = (
    132,
    1.755e9,
    2.6,
)  # of an H200; instructions that a good kernel issues a cycle, of four
# Bytes copied in memory, and read from the L2, a second; bfloat16 operations a second, of torch's matrix products and of a kernel's
# own by mma.sync; seconds that a launch takes to start and to drain.
BYTES, CACHED, FLOPS, MMA, LAUNCH = 4.3e12, 5.5e12, 790e12, 400e12, 1.5e-6


class Row(NamedTuple):
    """A kernel as one op launches it.

    Args:
        op: with its pass.
        kernel: in C++.
        warps: of all launches, which do the work.
        bytes: least traffic with the memory; by default the op's.
        trips: of the loops, as `sass.Kernel.usual` takes them.
        part: of what can be skipped on the longest way, how much is not, as it takes them: rows narrower than what registers hold
            skip a share.
        threads: of a block.
        launches: of all that the op launches in turn with it.
        flops: of matrix products in turn with it.
        idle: warps that find nothing to do and leave.
        dynamic: bytes of shared memory that a launch adds.
        cached: bytes that it reads from the L2.
        mma: operations of its own on the matrix units.
    """

    op: str
    kernel: str
    warps: float
    bytes: float | None = None
    trips: tuple[float | tuple[float, float], ...] = ()
    part: float = 1
    threads: int = 256
    launches: int = 1
    flops: float = 0
    idle: float = 0
    dynamic: int = 0
    cached: float = 0
    mma: float = 0


class Whole(NamedTuple):
    """An op that is several kernels in turn.

    Args:
        op: with its pass, and after a comma the size where that is not the large one.
        rows: its kernels.
        flops: of matrix products between them.
        launches: of those and of whatever else torch does.
    """

    op: str
    rows: tuple[Row, ...]
    flops: float = 0
    launches: int = 0


def floor_of(op: str, flops: float, moved: float | None = None) -> float:
    """Seconds that the memory or the matrix units need at least: of the op as the benchmark counts it, or of the bytes given."""
    op, _, size = op.partition(", ")
    name, _, pass_ = op.partition(" ")
    if moved is not None and (name not in ENTRIES or size):
        return moved / BYTES
    if name not in ENTRIES:
        return 0
    with FakeTensorMode():
        cost = ENTRIES[name].case(size or "large", torch.bfloat16, "cpu").cost(pass_)
    return max(cost.bytes / BYTES, flops / FLOPS)


def instructions(row: Row, kernel: sass.Kernel) -> float:
    """Return how many a warp issues."""
    return sum(kernel.usual(row.trips, row.part).values())


class Prediction(NamedTuple):
    """Of one kernel."""

    seconds: float
    limit: str


def predict(row: Row, kernel: sass.Kernel) -> Prediction:
    """Return the longest of what its instructions, its memory, the L2 and the matrix units take, with what comes in turn with it."""
    issued = row.warps * instructions(row, kernel) + row.idle * len(kernel.shortest())
    blocks = (row.warps + row.idle) * 32 / row.threads
    busy = min(MULTIPROCESSORS, blocks)
    times = {
        "instructions": issued / (busy * CLOCK * ISSUE),
        "bytes": floor_of(row.op, row.flops) if row.bytes is None else row.bytes / BYTES,
        "L2": row.cached / CACHED,
        "matrix units": row.mma / MMA,
    }
    limit = max(times, key=lambda name: times[name])
    seconds = times[limit] + row.flops / FLOPS + row.launches * LAUNCH
    return Prediction(seconds, f"products, then {limit}" if row.flops / FLOPS > times[limit] else limit)


HEAD = ("op", "kernel", "floor", "predicted", "of floor", "limit", "instructions", "loads by bits", "registers", "shared", "stack", "occupancy", "launches")  # fmt: skip


def cells(row: Row, kernel: sass.Kernel) -> tuple[str, ...]:
    """Return a line of the table."""
    floor, (seconds, limit) = floor_of(row.op, row.flops, row.bytes), predict(row, kernel)
    loads: Counter[int] = Counter()
    for opcode, number in kernel.opcodes("LDG").items():
        width = re.search(r"\.[US]?(8|16|64|128)\b", opcode)
        loads[int(width[1]) if width else 32] += number
    blocks = sass.blocks_at_once(kernel.usage, row.threads, row.dynamic, 90)
    return (
        row.op,
        f"`{row.kernel}`",
        duration(floor),
        duration(seconds),
        f"{seconds / floor:.2f}" if "," not in row.op else "",
        limit,
        f"{instructions(row, kernel):.0f}",
        ", ".join(f"{width}: {loads[width]}" for width in sorted(loads, reverse=True)),
        str(kernel.usage.registers),
        str(kernel.usage.shared + row.dynamic),
        str(kernel.usage.stack),
        f"{blocks * row.threads / 2048:.0%}",
        str(row.launches),
    )


def cells_of_whole(whole: Whole, read: dict[str, sass.Kernel]) -> tuple[str, ...]:
    """Return the line of an op, before those of its kernels."""
    floor, found = floor_of(whole.op, whole.flops), {x.kernel: predict(x, read[x.kernel]) for x in whole.rows}
    launches = whole.launches + sum(x.launches for x in whole.rows)
    products = whole.flops / FLOPS
    seconds = products + whole.launches * LAUNCH + sum(x.seconds for x in found.values())
    slowest = max(found, key=lambda name: found[name].seconds)
    limit = f"`{slowest.partition('<')[0]}`" if found[slowest].seconds > products else "products"
    head = (whole.op, "", duration(floor), duration(seconds), f"{seconds / floor:.2f}", limit)
    return (*head, *[""] * 6, str(launches))
