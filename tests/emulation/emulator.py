"""Compile and run the programs of the emulation: the CUDA kernels on the CPU, under ASan and UBSan."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor

from ..ops.families import TOLERANCES

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"

FLAGS = [
    *("-std=c++20", "-g1", "-ffp-contract=off", "-DCFMVIT_EMULATION"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
]
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
# What watches a program: flags to compile with, and to link with. ASan's needs no optimisation, which would take as long again to
# compile; ThreadSanitizer's calls, fewer in optimised code, are answered by races.h instead of its library.
WATCHES = {
    "memory": (["-O0", *SANITIZERS], SANITIZERS),
    "races": (["-O1", "-fsanitize=thread", "-DCFMVIT_RACES"], []),
}
SEEDS = (1, 2)
DTYPES = list(TOLERANCES)
# Channels around a lane, a warp, a block and a vector.
WIDTHS = (1, 31, 32, 33, 255, 256, 257, 1000)

Input = Tensor | int | float | None


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return normal numbers that are the same, but for rounding, in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_matches(found: Tensor, expected: Tensor) -> None:
    """Compare a kernel's output with the truth in float64, by the tolerance of the output's dtype."""
    torch.testing.assert_close(found.double(), expected.double(), equal_nan=True, **TOLERANCES[found.dtype])


class EmulationError(Exception):
    """A program of the emulation ended with a message of its own or of a sanitizer."""


def _span(x: Tensor) -> Tensor:
    """Return the elements from the first to the last that x has, gaps included."""
    if x.numel() == 0:
        return x.new_empty(0)
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    return x.as_strided((last + 1,), (1,))


def _numbers(values: Sequence[int]) -> str:
    return "".join(f" {value}" for value in values)


def _record(name: str, value: Tensor | int | float, lead: int) -> bytes:
    x = (
        value
        if isinstance(value, Tensor)
        else torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
    )
    data = _span(x).contiguous().view(torch.uint8).numpy().tobytes()
    dtype = str(x.dtype).removeprefix("torch.")
    header = f"{name} {dtype} {lead * x.element_size()} {len(data)} {x.dim()}{_numbers(x.shape)}{_numbers(x.stride())}\n"
    return header.encode() + data


def _parse(data: bytes, runs: int) -> list[dict[str, Tensor]]:
    at = 0

    def line() -> str:
        nonlocal at
        end = data.index(b"\n", at)
        text, at = data[at:end].decode(), end + 1
        return text

    results = []
    for _ in range(runs):
        arrays = {}
        for _ in range(int(line())):
            name, dtype_name, _, *sizes = line().split()
            dtype, shape = getattr(torch, dtype_name), [int(size) for size in sizes]
            count = torch.Size(shape).numel()
            arrays[name] = (
                torch.frombuffer(bytearray(data), dtype=dtype, count=count, offset=at)
                if count
                else torch.empty(0, dtype=dtype)
            ).reshape(shape)
            at += count * dtype.itemsize
        results.append(arrays)
    return results


def compiled(family: str, watch: str, folder: Path) -> Path:
    """Return the family's program, compiled unless ``folder`` has it from the same sources, flags and compiler."""
    to_compile, to_link = WATCHES[watch]
    flags = [*FLAGS, *to_compile, f"-I{CSRC}", f"-I{HERE}", str(HERE / f"{family}.cpp")]
    version, text = (_output("g++", *more) for more in (["--version"], [*flags, "-E"]))
    key = hashlib.sha256("".join([version, text, *FLAGS, *to_compile]).encode()).hexdigest()[:16]
    program = folder / f"{family}-{watch}-{key}"
    if not program.exists():
        for old in folder.glob(f"{family}-{watch}-*"):
            old.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            compiled_to, linked_to = f"{unfinished}/object", Path(unfinished, "program")
            _output("g++", *flags, "-c", "-o", compiled_to)
            _output("g++", *to_link, compiled_to, "-o", str(linked_to))
            linked_to.rename(program)
    return program


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Emulator:
    """One family's kernels, run under each watch.

    Args:
        programs: by the watch, perhaps still to come.
        folder: for the files that are passed to and fro.
    """

    def __init__(self, programs: Mapping[str, Future[Path]], folder: Path) -> None:
        self.programs, self.folder = programs, folder

    def __call__(
        self, kernel: str, inputs: Mapping[str, Input], *, lead: int = 0, seeds: Sequence[int] = SEEDS
    ) -> dict[str, Tensor]:
        """Run a kernel under several schedules and return its outputs, the same bits from each.

        Args:
            inputs: tensors keep their strides; None is an absent input; a bool, an int or a float is a number.
            lead: elements by which each tensor misses the alignment of an allocation.

        Raises:
            EmulationError: a rule of the emulation or of a sanitizer was broken; the message is the program's.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        records = b"".join(_record(name, value, lead) for name, value in given.items())
        first, *others = self._run("memory", kernel, len(given), seeds, records)
        for other in others:
            for name, x in first.items():
                same = torch.equal(x.reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
                assert same, f"{kernel}: {name} depends on the schedule, or is not all written"
        self._run("races", kernel, len(given), seeds[:1], records)
        return first

    def _run(
        self, watch: str, kernel: str, arrays: int, seeds: Sequence[int], records: bytes
    ) -> list[dict[str, Tensor]]:
        program, jobs, results = self.programs[watch].result(), self.folder / "jobs", self.folder / "results"
        jobs.write_bytes(f"{kernel} {arrays} {len(seeds)}{_numbers(seeds)}\n".encode() + records)
        done = subprocess.run([program, jobs, results], capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise EmulationError(f"{kernel} exits with {done.returncode}\n{done.stderr}")
        return _parse(results.read_bytes(), len(seeds))
