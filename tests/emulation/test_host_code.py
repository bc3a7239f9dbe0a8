"""The CUDA ops whole, from checks to launches, on CPU tensors: the ops' own tests, answered by the emulated kernels."""

from __future__ import annotations

import hashlib
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ..processes import run
from .emulator import CSRC, FLAGS, HERE

TORCH = Path(torch.__file__).parent
OPTIONS = [
    *(*FLAGS, "-O1", "-g0", "-fPIC", "-fvisibility=hidden"),
    *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DCFMVIT_CHUNK_ROWS=256"),
    *("-isystem", str(TORCH / "include")),
    *(f"-I{folder}" for folder in (HERE / "host", CSRC, HERE)),
]
LIBRARIES = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
SUFFIXES = (".h", ".cuh", ".cu", ".cpp")
SUITES = {
    "masking": ["test_masking.py"],
    "reconstruction": ["test_reconstruction.py"],
    "regions": [
        "test_regions.py",
        "test_regions_pyramid.py",
        "test_regions_pool.py",
        "test_regions_scores.py",
    ],
}
# What is no question to a kernel; what never comes to one: the references, and a process of its own; what a GPU does otherwise: values
# of noise and boxes are not looked at, chunks of a projection are larger, norms are divided out of products; and many tokens, which
# take long.
LEFT_OUT = (
    "reference",
    "answers_ctrl_c",
    "compiles",
    "export",
    "opcheck",
    "(bad_input and noise)",
    "(refusals and number)",
    "checks_for_itself",
    "never_held_whole",
    "large_losses",
    "bit_for_bit_as_float32",
)


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA library with the emulation for a device; kept in pytest's cache while its sources stay as they are."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the emulation with")
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("emulation") if cache else tmp_path_factory.mktemp("emulation")
    texts = sorted(path for place in (CSRC, HERE) for path in place.rglob("*") if path.suffix in SUFFIXES)
    known = [run("g++", "--version"), torch.__version__, *OPTIONS, *LIBRARIES]
    key = hashlib.sha256("".join([*known, *(path.read_text() for path in texts)]).encode()).hexdigest()[:16]
    built = folder / f"host-{key}.so"
    if not built.exists():
        for old in folder.glob("host-*.so"):
            old.unlink(missing_ok=True)
        objects = tmp_path_factory.mktemp("objects")
        # Read once for all sources; -w: that it says `#pragma once` is no fault of a header that is compiled by itself.
        header = HERE / "host" / "first.h"
        run("g++", *OPTIONS, "-w", "-x", "c++-header", header, "-o", objects / "first.h.gch")
        sources = [CSRC / "schema.cpp", *sorted((CSRC / "cuda").glob("*.cu"))]
        compiler = ("g++", f"-I{objects}", *OPTIONS, "-x", "c++", "-include", "first.h", "-c")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda source: run(*compiler, source, "-o", objects / f"{source.stem}.o"), sources))
        run("g++", "-shared", *objects.glob("*.o"), *LIBRARIES, "-o", objects / "host.so")
        shutil.move(objects / "host.so", built)
    return built


@pytest.mark.first
@pytest.mark.parametrize("family", SUITES)
def test_the_ops_own_tests_pass(library: Path, family: str) -> None:
    tests = [HERE.parent / "ops" / name for name in SUITES[family]]
    chosen = ["-n0", "-q", "-p", "no:cacheprovider", "-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    report = run(
        sys.executable, HERE / "with_library.py", library, *chosen, *tests,
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert " passed" in report
    assert " failed" not in report
