"""The CUDA library as built: no kernel spills or grows beyond its budget, for any architecture."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

import cfmvit
from cfmvit.ops.shared import library

BUDGETS = Path(__file__).with_name("kernel_budgets.txt")


class Use(NamedTuple):
    """What one instantiation of a kernel takes on one architecture."""

    kernel: str
    architecture: str
    registers: int
    shared: int
    stack: int  # spilled registers, and arrays that are indexed by variables


def tool(name: str) -> str:
    """Return a tool of the toolkit, the system, or those that triton brings."""
    spec = importlib.util.find_spec("triton")
    brought = Path(spec.origin).parent / "backends/nvidia/bin" / name if spec and spec.origin else None
    found = shutil.which(name) or (str(brought) if brought and brought.exists() else None)
    if found is None:
        pytest.skip(f"no {name} to read the CUDA library with")
    return found


def output(*command: str, given: str | None = None) -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


def short_name(demangled: str) -> str:
    """void cfmvit::kernels::sum_kernel<float, 4>(...) is sum_kernel; of for_each_kernel and for_each_warp_kernel, the body."""
    names = re.findall(r"cfmvit::kernels::(?:\(anonymous namespace\)::)?(\w+)", demangled)
    return names[1] if names[0].startswith("for_each_") else names[0]


@pytest.fixture(scope="module")
def uses() -> list[Use]:
    if not (library.core and library.core.build_info()["cuda"].startswith("built")):
        pytest.skip(f"no CUDA library: {library.core_missing or library.cuda_missing}")
    built = next(path for root in cfmvit.__path__ for path in Path(root).glob("_cuda.so"))
    text = output(tool("c++filt"), given=output(tool("cuobjdump"), "--dump-resource-usage", str(built)))
    found, architecture = [], ""
    for line in text.splitlines():
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif "Function " in line:
            kernel = short_name(line)
        elif "REG:" in line:
            registers, stack, shared = (
                int(re.search(rf"{x}:(\d+)", line)[1]) for x in ("REG", "STACK", "SHARED")
            )
            found.append(Use(kernel, architecture, registers, shared, stack))
    return found


def test_every_architecture_has_every_kernel(uses: list[Use]) -> None:
    built = library.core.build_info()["cuda_architectures"].split()
    assert {f"sm_{name.removesuffix('-real')}" for name in built} == {use.architecture for use in uses}
    kernels = {use.kernel for use in uses}
    for architecture in {use.architecture for use in uses}:
        assert {use.kernel for use in uses if use.architecture == architecture} == kernels


def test_no_kernel_spills(uses: list[Use]) -> None:
    assert not [use for use in uses if use.stack]


def test_kernels_keep_to_their_budgets(uses: list[Use]) -> None:
    """Registers are granted by eights: a budget is the next multiple of what the biggest instantiation takes."""
    compiler, heading, *lines = BUDGETS.read_text().splitlines()
    built = library.core.build_info()["cuda"]
    if compiler not in built:
        pytest.skip(f"the budgets are those of {compiler}, the library was {built}")
    budgets = {name: (int(registers), int(shared)) for name, registers, shared in map(str.split, lines)}
    needed = {
        kernel: (
            max(-(-use.registers // 8) * 8 for use in uses if use.kernel == kernel),
            max(use.shared for use in uses if use.kernel == kernel),
        )
        for kernel in sorted({use.kernel for use in uses})
    }
    table = "\n".join([compiler, heading, *(f"{name:40} {r:9} {s:12}" for name, (r, s) in needed.items())])
    assert set(budgets) == set(needed), f"{BUDGETS.name} should be:\n{table}"
    over = {name for name, use in needed.items() if any(x > y for x, y in zip(use, budgets[name]))}
    assert not over, f"beyond their budgets: {sorted(over)}; {BUDGETS.name} would be:\n{table}"
