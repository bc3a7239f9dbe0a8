"""What the region kernels compile to for compute capability 9.0: instructions of their inner loops, widths of loads, blocks at once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cfmvit.bench import sass

CSRC = Path(__file__).parents[2] / "csrc"
SOURCE = """
#include "kernels/regions_bin_rows.cuh"
#include "kernels/regions_matmul.cuh"
#include "kernels/regions_scatter.cuh"
#include "kernels/regions_scores.cuh"
namespace cfmvit::kernels {
using S = BFloat16;
template __global__ void bin_rows_kernel<S>(Gather<S>, int32_t);
template __global__ void gather_kernel<S, false>(Gather<S>, int32_t, Divider);
template __global__ void products_kernel<S>(Gather<S>, const int32_t*, const int64_t*);
template __global__ void pack_kernel<S>(Pyramid<const S>, Pyramid<S>, Tiles, int32_t);
template __global__ void scatter_kernel<S, S>(
    Pyramid<S>, Tiles, Tables<float>, Readers, Divider, Divider, Bins<const S>, int32_t, bool);
void groups(const int32_t* of_box, Groups out) { make_groups(of_box, 1, out, nullptr); }
template __global__ void warp_scores_kernel<S, true, 10, 6>(Scores<S>);
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, sass.Kernel]:
    """The kernels by name."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc to compile with")
    try:
        sass.tool("cuobjdump"), sass.tool("nvdisasm")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("counts")
    source, cubin = folder / "kernels.cu", folder / "kernels.cubin"
    source.write_text(SOURCE)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    if "release 13.0" not in version:
        pytest.skip("the counts are those of nvcc 13.0")
    command = [nvcc, "-std=c++20", f"-I{CSRC}", "-arch=sm_90a", "-cubin", "-o", str(cubin), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = sass.kernels(cubin)
    assert not [name for name, kernel in found.items() if kernel.usage.stack]
    names = (
        "bin_rows_kernel", "gather_kernel", "products_kernel", "pack_kernel", "scatter_kernel", "group_kernel", "warp_scores_kernel"
    )  # fmt: skip
    return {name: next(kernel for full, kernel in found.items() if name in full) for name in names}


def loop_of(kernel: sass.Kernel, opcode: str, count: int) -> range:
    """The smallest loop with at least so many of an instruction."""
    return next(
        body
        for body in (range(*loop) for loop in kernel.loops)
        if kernel.opcodes(opcode, body).total() >= count
    )


def test_rows_of_bins_are_products(kernels: dict[str, sass.Kernel]) -> None:
    """Of 16 pixels and 128 channels by 8 bins: 16 bytes a load, and what else a product takes for all channels at once."""
    kernel = kernels["bin_rows_kernel"]
    loop = loop_of(kernel, "HMMA", 16)
    assert kernel.opcodes("LDG", loop) == {"LDG.E.128": 8}
    assert kernel.counts(loop).total() <= 104
    assert sass.blocks_at_once(kernel.usage, 4 * 32, 7 * 7 * 256, 90) >= 3


def test_large_boxes_share_a_row(kernels: dict[str, sass.Kernel]) -> None:
    """Of 64 pixels and 64 channels: 16 boxes at once where all read it, in four products a load, or 8 of them."""
    kernel = kernels["products_kernel"]
    loop = loop_of(kernel, "HMMA", 3 * 64)
    assert kernel.opcodes("HMMA", loop).total() == 3 * 64
    assert kernel.opcodes("LDSM", loop).total() == 5 * 16
    assert kernel.counts(loop).total() <= 580
    assert sass.blocks_at_once(kernel.usage, 256, 72_336, 90) >= 2


def test_half_of_the_warps_copy_two_rows(kernels: dict[str, sass.Kernel]) -> None:
    """In eight copies each; what a warp issues beside, for two rows at a time, is little."""
    kernel = kernels["products_kernel"]
    rows, batch = loop_of(kernel, "HMMA", 1), loop_of(kernel, "LDGSTS", 8)
    assert kernel.opcodes("LDGSTS", batch).total() == 8
    assert len(batch) - len(rows) <= 56


def test_gather_reads_eight_vectors_before_it_adds(kernels: dict[str, sass.Kernel]) -> None:
    """Two rows of four taps: 16 bytes of channels each, with one multiplication and addition a channel and tap."""
    kernel = kernels["gather_kernel"]
    loop = loop_of(kernel, "LDG.E.128", 8)
    assert kernel.counts(loop)["float"] <= 8 * 9
    assert kernel.counts(loop).total() <= 210
    assert sass.blocks_at_once(kernel.usage, 96, 0, 90) >= 8  # of 768 channels


def test_pack_takes_fourteen_instructions_an_element(kernels: dict[str, sass.Kernel]) -> None:
    kernel = kernels["pack_kernel"]
    loop = loop_of(kernel, "LDG", 8)
    assert kernel.opcodes("STG.E.128", loop).total() == 1
    assert kernel.counts(loop).total() <= 8 * 14
    assert sass.blocks_at_once(kernel.usage, 256, 0, 90) >= 6


def test_scatter_adds_in_registers(kernels: dict[str, sass.Kernel]) -> None:
    """Four bins at a time, 8 channels of each of 8 pixels but for those without a weight; neither atomics nor sums in memory."""
    kernel = kernels["scatter_kernel"]
    loop = loop_of(kernel, "LDG.E.128", 4)
    assert kernel.counts(loop)["float"] == 4 * 8 * (1 + 8)
    assert kernel.counts(loop).total() <= 4 * 190
    assert not kernel.opcodes("STS", loop)
    assert not kernel.counts()["atomic"]
    assert sass.blocks_at_once(kernel.usage, 256, 0, 90) >= 2


def test_groups_are_counted_by_whole_lines(kernels: dict[str, sass.Kernel]) -> None:
    """Eight loads are under way at a time, and every lane's neighbour reads the next box."""
    kernel = kernels["group_kernel"]
    loop = loop_of(kernel, "LDG", 8)
    assert kernel.counts(loop).total() <= 8 * 13


def test_products_of_scores_are_read_once(kernels: dict[str, sass.Kernel]) -> None:
    """Of 1,280 texts: 10 vectors of each tower, of inverse norms and of exponents, and what the next chunk takes; three exponentials a text."""
    kernel = kernels["warp_scores_kernel"]
    staged = range(
        *next(loop for loop in kernel.loops if kernel.opcodes("LDG.E.128", range(*loop)).total() == 4)
    )
    assert kernel.opcodes("STG.E.128", staged).total() == 4
    assert kernel.counts(staged).total() <= 84
    assert kernel.opcodes("LDG.E.128").total() == 4 * 10 + 4 + 1
    assert kernel.opcodes("MUFU.EX2").total() <= 3 * 40 + 6
    assert sum(kernel.usual((1,)).values()) <= 1350
    assert sass.blocks_at_once(kernel.usage, 32, 0, 90) >= 12
