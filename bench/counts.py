"""What the CUDA kernels should take on an H200, by what they compile to and what they move: `docs/kernel-counts.md`.

    python -m cfmvit.bench.counts [--output docs/kernel-counts.md]

Needs nvcc and the sources, no GPU and no build, since the kernels know nothing of torch: each is compiled for compute capability 9.0 in
the form that the benchmark's large size in bfloat16 launches.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cfmvit.bench import sass
from cfmvit.bench.registry import ENTRIES
from cfmvit.bench.tables import duration, markdown

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
# An H200: bytes copied and bfloat16 operations of matrix products a second; warp instructions a second, of which a cycle of its 132
# multiprocessors at 1.755 GHz could have four and has 2.6 in good kernels; seconds that a launch takes to start and to drain.
BYTES, FLOPS, ISSUED, LAUNCH = 4.3e12, 790e12, 132 * 1.755e9 * 2.6, 1.5e-6
B, N, K, M, D, H = (
    4096,
    196,
    49,
    147,
    768,
    512,
)  # samples, tokens, kept, masked; widths of tokens and of a decoder
ITEM, INDEX, ENTRY = 2, 8, 8  # bytes of a number, of an index, of an entry of its inverse
CHUNKS = -(-B * M // (132 * 128))  # of the projection, whose products lie in the cache


class Row(NamedTuple):
    """A kernel as one op launches it.

    Args:
        op: with its pass.
        kernel: in C++.
        warps: of all launches.
        bytes: least traffic with the memory; by default the op's.
        trips: of the loops, as `sass.Kernel.usual` takes them.
        part: of what can be skipped on the longest way, how much is not: rows narrower than what registers hold skip a share.
        threads: of a block.
        launches: of all that the op launches in turn with it.
        flops: of matrix products in turn with it.
    """

    op: str
    kernel: str
    warps: float
    bytes: float | None = None
    trips: tuple[float, ...] = ()
    part: float = 1
    threads: int = 256
    launches: int = 1
    flops: float = 0


HEADERS = ("masking_order", "masking_patches", "masking_restore", "reconstruction_pixels")
PAIRS = B * M * D * ITEM
OWNERS = (
    98 * 7 * 6
)  # warps of a backward by tokens: two of 192 threads own 8 channels of 2 tokens, in 7 partial sums
ROWS = (
    Row("gather_tokens forward", "gather_tokens_kernel<BFloat16, 8>", B * M, trips=(1,)),
    Row("gather_tokens backward", "scatter_tokens_kernel<BFloat16, 8, true>", OWNERS, trips=(147,), threads=192, launches=3),
    Row("its inverse index", "invert_kernel<256>", 8 * B, B * (M * INDEX + N * ENTRY), trips=(1, 0, 1)),
    Row("restore_tokens forward", "restore_tokens_kernel<BFloat16, 8>", B * N, trips=(1,)),
    Row("restore_tokens backward", "restore_tokens_backward_kernel<BFloat16, 8>", OWNERS, trips=(147,), threads=192, launches=4),
    Row("gather_patches forward", "gather_patches_kernel<uint8_t, BFloat16, 8>", 8 * 8192, trips=(1, 49 / 16, 0, 2)),
    Row("masked_cosine_loss forward", "cosine_losses_kernel<BFloat16, BFloat16, 8>", B * M, part=1 / 2),
    Row("masked_cosine_loss backward", "cosine_gradient_kernel<BFloat16, BFloat16, 8>", B * M, part=1 / 2, launches=2),
    Row("linear_masked_cosine_loss forward", "cosine_losses_kernel<BFloat16, BFloat16, 8>", B * M, PAIRS, part=1 / 2, launches=2 * CHUNKS, flops=2 * B * M * D * H),
    Row("linear_masked_cosine_loss both", "cosine_gradient_kernel<BFloat16, BFloat16, 8>", B * M, PAIRS, part=1 / 2, launches=6 * CHUNKS, flops=6 * B * M * D * H),
    Row("its bias's gradient", "column_sums_kernel<BFloat16, float>", B * M / 256 * 24 * 8, PAIRS, trips=(0, 4), launches=0),
    Row("masked_pixel_loss forward", "pixel_losses_kernel<BFloat16, Runs<4, 3, 24>>", B * M),
    Row("masked_pixel_loss backward", "pixel_gradient_kernel<BFloat16, Runs<4, 3, 24>>", B * M, launches=2),
)  # fmt: skip


def compiler() -> str:
    """Return the version of nvcc, as its own last lines say it.

    Raises:
        FileNotFoundError: there is none.
    """
    text = subprocess.run([sass.tool("nvcc"), "--version"], capture_output=True, text=True, check=True).stdout
    return text.rpartition(", V")[2].split()[0]


def compiled() -> dict[str, sass.Kernel]:
    """Compile the kernels of `ROWS` and read them, by their names there."""
    names = list(dict.fromkeys(row.kernel for row in ROWS))
    lines = [f'#include "kernels/{header}.cuh"' for header in HEADERS]
    lines += ["namespace cfmvit::kernels {"]
    lines += [f"const void* const kernel_{i} = (const void*)&{name};" for i, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        source.write_text("\n".join([*lines, "}\n"]))
        options = ("-std=c++20", "-arch=sm_90a", "-cubin", "-diag-suppress=177", f"-I{SOURCES}", "-o", cubin)
        subprocess.run([sass.tool("nvcc"), *options, source], check=True)
        found = sass.kernels(cubin)
    plain = subprocess.run(
        ["c++filt"], input="\n".join(found), capture_output=True, text=True, check=True
    ).stdout
    short = [
        re.sub(r"^void |\(.*|cfmvit::(kernels::)?|(?<=>) (?=>)", "", line) for line in plain.splitlines()
    ]
    read = dict(zip(short, found.values(), strict=True))
    return {name: read[name.replace("uint8_t", "unsigned char")] for name in names}


def floor_of(row: Row) -> float:
    """Seconds that the memory or the matrix units need at least: of the op as the benchmark counts it, or of the row's own bytes."""
    name, _, pass_ = row.op.partition(" ")
    if name not in ENTRIES:
        return (row.bytes or 0) / BYTES
    with FakeTensorMode():
        cost = ENTRIES[name].case("large", torch.bfloat16, "cpu").cost(pass_)
    return max(cost.bytes / BYTES, row.flops / FLOPS)


def instructions(row: Row, kernel: sass.Kernel) -> float:
    """Return how many a warp issues."""
    longest = sum(kernel.usual(row.trips).values())
    if row.part == 1:
        return longest
    sums = next(i for i, x in enumerate(kernel.instructions) if x.kind == "shuffle")
    least = len(kernel.shortest(through=sums))
    return least + row.part * (longest - least)


def cells(row: Row, kernel: sass.Kernel) -> tuple[str, ...]:
    """Return a line of the table."""
    floor, issued = floor_of(row), row.warps * instructions(row, kernel) / ISSUED
    moved = floor if row.bytes is None else row.bytes / BYTES
    seconds = max(moved, issued) + row.flops / FLOPS + row.launches * LAUNCH
    limit = "instructions" if issued > moved else "bytes"
    if row.flops / FLOPS > max(issued, moved):
        limit = f"products, then {limit}"
    loads: Counter[int] = Counter()
    for opcode, number in kernel.opcodes("LDG").items():
        width = re.search(r"\.[US]?(8|16|64|128)\b", opcode)
        loads[int(width[1]) if width else 32] += number
    blocks = sass.blocks_at_once(kernel.usage, row.threads, 0, 90)
    return (
        row.op,
        f"`{row.kernel}`",
        duration(floor),
        duration(seconds),
        f"{seconds / floor:.2f}",
        limit,
        f"{instructions(row, kernel):.0f}",
        ", ".join(f"{width}: {loads[width]}" for width in sorted(loads, reverse=True)),
        str(kernel.usage.registers),
        str(kernel.usage.shared),
        str(kernel.usage.stack),
        f"{blocks * row.threads / 2048:.0%}",
        str(row.launches),
    )


def page() -> str:
    """Return the page of the table, in markdown."""
    for family in ("masking", "reconstruction"):
        importlib.import_module(f"cfmvit.bench.{family}")
    read = compiled()
    head = ("op", "kernel", "floor", "predicted", "of floor", "limit", "instructions", "loads by bits", "registers", "shared", "stack", "occupancy", "launches")  # fmt: skip
    table = markdown(head, [cells(row, read[row.kernel]) for row in ROWS])
    return f"{TEXT.format(compiler=compiler())}\n{table}\n"


TEXT = f"""# Kernels by their counts

What the CUDA kernels should take on an H200, by what nvcc {{compiler}} compiles them to for compute capability 9.0 and what they
move, at the benchmark's large sizes in bfloat16. `python -m cfmvit.bench.counts --output docs/kernel-counts.md` writes this page.

The floor is what the memory ({BYTES / 1e12:.1f} TB/s) or the matrix units ({FLOPS / 1e12:.0f} TFLOP/s) need at least. The prediction is the longer of the memory's
time and of {ISSUED / 132 / 1.755e9:.1f} instructions a cycle on each of 132 multiprocessors at 1.755 GHz, with {LAUNCH * 1e6:.1f} us a launch; matrix products between the
launches are added to it. Instructions are a warp's, on the longest way that nothing rare is on: too many where warps take ways of their
own, as in the backward of restore_tokens, where three tokens of four are masked. Loads are counted in the code. Nothing here has been
measured.
"""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="counts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="markdown file to write; default: print")
    options = parser.parse_args()
    text = page()
    print(text, end="") if options.output is None else options.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
