"""The fuzz tests once more, on a core built with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..processes import ROOT, cmake, run, tool

HERE = Path(__file__).parent
FUZZ = [str(HERE / f"test_{part}.py") for part in ("ops", "dropins")]
DIRECT = str(HERE / "test_direct.py")


@pytest.fixture(scope="module")
def runtimes() -> str:
    """The sanitizer's runtime, which must come before all others, and that of C++ exceptions, which it watches."""
    compiler = tool("g++")
    found = [
        Path(run(compiler, f"-print-file-name={name}").strip()) for name in ("libasan.so", "libstdc++.so")
    ]
    if not found[0].is_absolute():
        pytest.skip("g++ has no libasan")
    return " ".join(map(str, found))


@pytest.fixture(scope="module")
def core(runtimes: str, request: pytest.FixtureRequest) -> Path:
    """The sanitized core, kept in pytest's cache: made in a minute or two, brought up to date in seconds."""
    ninja = tool("ninja")
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("no pybind11 to build the core under sanitizers with")
    folder = request.config.cache.mkdir("sanitized")
    run(
        cmake(), "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DCFMVIT_SANITIZE=ON", "-DCFMVIT_CUDA=OFF", "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CXX_COMPILER={tool('g++')}",
        f"-Dpybind11_DIR={run(sys.executable, '-m', 'pybind11', '--cmakedir').strip()}",
    )  # fmt: skip
    run(cmake(), "--build", folder, "--parallel", str(os.cpu_count()))
    (built,) = folder.glob("_C.*")
    return built


def sanitized(core: Path, runtimes: str, *arguments: str, examples: int = 20, cases: int = 150) -> str:
    # Python and torch keep some memory to the end: leaks are no finding here. More memory than there is must be refused.
    return run(
        sys.executable, HERE / "with_core.py", core, "-n0", "--capture=no", "-q", "-p", "no:cacheprovider", *arguments,
        LD_PRELOAD=runtimes, ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1", UBSAN_OPTIONS="print_stacktrace=1", OMP_NUM_THREADS="2",
        CFMVIT_FUZZ_EXAMPLES=str(examples), CFMVIT_FUZZ_CASES=str(cases),
    )  # fmt: skip


@pytest.mark.first
def test_no_finding(core: Path, runtimes: str) -> None:
    assert " passed" in sanitized(core, runtimes, *FUZZ)


@pytest.mark.long
def test_no_finding_in_more_examples(core: Path, runtimes: str) -> None:
    assert " passed" in sanitized(core, runtimes, *FUZZ, examples=75)


@pytest.mark.long
def test_no_finding_in_direct_calls(
    core: Path, runtimes: str, record_property: Callable[[str, object], None]
) -> None:
    """Each family has eight ops or more, so 5,000 cases at least."""
    printed = sanitized(core, runtimes, DIRECT, cases=640)
    assert " passed" in printed
    for line in printed.splitlines():
        if line.startswith("fuzzed "):
            record_property("fuzzed", f"under sanitizers: {line.removeprefix('fuzzed ')}")


def test_a_planted_fault_is_found(core: Path, runtimes: str, tmp_path: Path) -> None:
    """A tensor longer than its memory reaches the core: the run ends with the sanitizer's report."""
    planted = tmp_path / "test_planted.py"
    planted.write_text(
        "import torch, cfmvit.ops\n"
        "def test_fault():\n"
        "    x = torch.zeros(2, 3, 4).as_strided((2, 3, 4), (12, 4, 1))\n"
        "    x.untyped_storage().resize_(4)\n"
        "    torch.ops.cfmvit.gather_tokens(x, torch.tensor([[2], [2]]), None, None)\n"
    )
    with pytest.raises(AssertionError, match="ERROR: AddressSanitizer: heap-buffer-overflow"):
        sanitized(core, runtimes, str(planted))
