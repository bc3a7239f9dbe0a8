"""What the CUDA kernels should take on an H200, by what they compile to and what they move: `docs/kernel-counts.md`.

    python -m cfmvit.bench.counts [--output docs/kernel-counts.md]

Needs nvcc, Triton and the sources, no GPU and no build, since the kernels know nothing of torch: each is compiled for compute capability
9.0 in the form that the benchmark's large size in bfloat16 launches.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cfmvit.bench import counts_regions, record, sass
from cfmvit.bench.counts_rows import (
    BYTES,
    CACHED,
    CLOCK,
    FLOPS,
    HEAD,
    ISSUE,
    LAUNCH,
    MMA,
    MULTIPROCESSORS,
    Row,
    Whole,
    cells,
    cells_of_whole,
)
from cfmvit.bench.tables import markdown

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
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

HEADERS = (
    "masking_order",
    "masking_patches",
    "masking_restore",
    "reconstruction_linear",
    "reconstruction_pixels",
)
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
    Whole(
        "linear_masked_cosine_loss forward",
        (Row("linear_masked_cosine_loss forward, losses", "cosine_losses_kernel<BFloat16, BFloat16, 8>", B * M, PAIRS, part=1 / 2, launches=CHUNKS, cached=2 * PAIRS),),
        flops=2 * B * M * D * H,
        launches=CHUNKS + 3,
    ),
    Whole(
        "linear_masked_cosine_loss both",
        (
            Row("linear_masked_cosine_loss both, gradient of rows", "projection_gradient_kernel<BFloat16, BFloat16, 8>", B * M / 8, PAIRS, trips=((8, 1 / 2), 0, 0, 1, 1, 1), launches=CHUNKS, cached=2 * PAIRS),
            Row("linear_masked_cosine_loss both, gradient of weight", "for_each_kernel<Add<float>>", CHUNKS / 4 * D * H / 32, D * H * 4, trips=(1, 1), launches=CHUNKS // 4, cached=CHUNKS / 4 * 5 * D * H * 4),
            Row("linear_masked_cosine_loss both, gradient of bias", "column_sums_kernel<float, float, 1>", D / 32 * 8, 264 * D * 4, trips=(4,)),
            Row("linear_masked_cosine_loss both, gradients times the mean's", "for_each_kernel<Scale<BFloat16, BFloat16, 8>>", B * M * H / 8 / 32, 2 * B * M * H * ITEM, trips=(1,), launches=3),
        ),
        flops=6 * B * M * D * H,
        launches=3 * CHUNKS + 9,
    ),
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


def wholes() -> list[Row | Whole]:
    """Return the lines of the table, an op's kernels in the op."""
    return [*ROWS, *counts_regions.rows()]


def compiled(rows: list[Row]) -> dict[str, sass.Kernel]:
    """Compile the kernels of some rows and read them, by their names there."""
    names = list(dict.fromkeys(row.kernel for row in rows))
    lines = [f'#include "kernels/{header}.cuh"' for header in (*HEADERS, *counts_regions.HEADERS)]
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


def page() -> str:
    """Return the page of the tables, in markdown.

    Raises:
        FileNotFoundError: there is no nvcc, or no cuobjdump.
        ModuleNotFoundError: there is no Triton.
    """
    from cfmvit.bench import counts_contrastive

    for family in ("masking", "reconstruction", "regions"):
        importlib.import_module(f"cfmvit.bench.{family}")
    lines = wholes()
    read = compiled([row for x in lines for row in (x.rows if isinstance(x, Whole) else (x,))])
    table = []
    for x in lines:
        if isinstance(x, Whole):
            table += [cells_of_whole(x, read), *(cells(row, read[row.kernel]) for row in x.rows)]
        else:
            table.append(cells(x, read[x.kernel]))
    return f"{TEXT.format(compiler=compiler())}\n{markdown(HEAD, table)}\n\n{counts_contrastive.section()}"


TEXT = f"""# Kernels by their counts

What the CUDA kernels should take on an H200, by what nvcc {{compiler}} compiles them to for compute capability 9.0 and what they
move, at the benchmark's large sizes in bfloat16. `python -m cfmvit.bench.counts --output docs/kernel-counts.md` writes this page.

The floor is what the memory ({BYTES / 1e12:.1f} TB/s) or the matrix units ({FLOPS / 1e12:.0f} TFLOP/s) need at least. The prediction is the longest of the memory's
time, of {ISSUE:.1f} instructions a cycle on each of {MULTIPROCESSORS} multiprocessors at {CLOCK / 1e9:.3f} GHz, of what is read from the L2 ({CACHED / 1e12:.1f} TB/s) and of a kernel's
own products (`mma.sync`, {MMA / 1e12:.0f} TFLOP/s), with {LAUNCH * 1e6:.1f} us a launch; matrix products between the launches are added to it. An op of several kernels
has a line of its own before theirs, limited by the slowest. Instructions are a warp's, on the longest way that nothing rare is on: too many
where warps take ways of their own, as in the backward of restore_tokens, where three tokens of four are masked. Loads are counted in the
code. Nothing here has been measured.

How often loops of the region kernels turn depends on the boxes. It is counted in the boxes of the benchmark, whose sizes are COCO's, by
the weights of the reference: the pixels that a bin reads, the columns that a row of bins reads, the boxes and bins that a warp of a gradient
finds, the rows and stretches of 16 columns that 8 large boxes multiply. Weights of zero and tiles that nothing reads are skipped, and counted so.

Four of these ops stay away from what was asked of them. linear_masked_cosine_loss (1.6): in the forward (1.8) prediction and target come
from the L2 between the products, which takes 336 us whatever the kernel does; forward and backward would be at 1.4, 70 % of the matrix
rate, were not the gradient of hidden, which is made before the mean's is known, multiplied by that in the end.
RoIAlign of channels last (1.3 of its floor): the L2 limits it, of which the floor
knows nothing. A box reads 336 pixels, each once; boxes of more than 28 pixels read few of those that they cover, so two of them have
little in common, and all 1,000 of an image read each of its 40,000 pixels 8 times. At the floor the L2 would have to give 16 TB/s.
pool_regions (3): its products alone take 2.9 of its floors. 8 boxes share a product of 16 pixels, of which a box reads a fifth, and
exact weights are two numbers.
score_regions (2): reading the products once from the L2, and the next embeddings with them, takes 0.7 of the time that they take; the
launches of 20 chunks, by which products stay in the L2, take another 0.3.
"""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="counts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="markdown file to write; default: print")
    options = parser.parse_args()
    try:
        if options.output is not None:
            record.ensure_writable(options.output)  # an error now, not after the compilers
        text = page()
    except (OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print(text, end="") if options.output is None else options.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
