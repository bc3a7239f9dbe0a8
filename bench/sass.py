"""What kernels come to, read from a cubin: registers, spills, shared memory; instructions by class, loops, the shortest way through.

    python -m cfmvit.bench.sass kernel.cubin [--only NAME]

Needs cuobjdump and nvdisasm, of the CUDA toolkit or of the triton wheel. Instructions are counted as one warp issues them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

# By how an opcode begins, the first that fits; all else is integer arithmetic, moves and selections: "other".
CLASSES = {
    "tensor": ("HGMMA", "HMMA", "IMMA", "IGMMA", "QGMMA", "QMMA", "OMMA", "DMMA", "BMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA"),
    "special": ("MUFU",),
    "shuffle": ("SHFL", "VOTE", "MATCH", "REDUX", "CREDUX"),
    "async copy": ("LDGSTS", "UTMA", "UBLK"),
    "global load": ("LDG", "LD."),
    "global store": ("STG", "ST."),
    "atomic": ("ATOM", "RED"),
    "shared load": ("LDS",),
    "shared store": ("STS",),
    "local": ("LDL", "STL"),
    "barrier": ("BAR", "SYNCS", "WARPSYNC", "WARPGROUP", "MEMBAR", "FENCE", "DEPBAR", "LDGDEPBAR", "ERRBAR", "UTCBAR", "B2R", "BSSY", "BSYNC"),
    "branch": ("BRA", "BRX", "JMP", "JMX", "EXIT", "RET", "CALL", "BREAK", "KILL", "BPT"),
    "convert": ("F2", "I2", "FRND"),
    "float": ("FADD", "FMUL", "FFMA", "FMNMX", "FSET", "FSEL", "FCHK", "HADD", "HMUL", "HFMA", "HMNMX", "HSET", "DADD", "DMUL", "DFMA", "DSET", "DMNMX"),
}  # fmt: skip
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);", re.MULTILINE)
_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_USAGE = re.compile(r"Function (\S+?):\s*REG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")


class Instruction(NamedTuple):
    """One line of SASS."""

    address: int
    predicate: str  # "P0", "!P0" or nothing
    opcode: str  # with its modifiers
    operands: str

    @property
    def kind(self) -> str:
        """Name of its class."""
        return next((name for name, begins in CLASSES.items() if self.opcode.startswith(begins)), "other")

    @property
    def target(self) -> int | None:
        """Address that it may branch to."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands) if self.opcode.startswith("BRA") else None
        return int(found[1], 16) if found else None

    @property
    def ends(self) -> bool:
        """Whether what follows is never reached from here."""
        always = self.predicate in ("", "PT", "UPT") and not re.match(r"!?U?P\d", self.operands)
        return (
            always
            and self.opcode != "BRA.DIV"
            and self.opcode.split(".")[0] in ("BRA", "EXIT", "RET", "JMP", "BRX", "KILL")
        )


class Usage(NamedTuple):
    """What a kernel takes of a multiprocessor: registers of a thread, bytes of its stack, bytes of static shared memory."""

    registers: int
    stack: int
    shared: int
    local: int


class Loop(NamedTuple):
    """Instructions [first, end) of a kernel, at whose end is the branch back."""

    first: int
    end: int


class Kernel:
    """The instructions of a kernel, in their order."""

    def __init__(self, name: str, instructions: Sequence[Instruction], usage: Usage):
        self.name, self.instructions, self.usage = name, list(instructions), usage
        self._at = {x.address: i for i, x in enumerate(self.instructions)}

    def counts(self, chosen: Iterable[int] | None = None) -> Counter[str]:
        """Instructions by class, of all or of the chosen indices."""
        chosen = range(len(self.instructions)) if chosen is None else chosen
        return Counter(self.instructions[i].kind for i in chosen)

    def opcodes(self, beginning: str, chosen: Iterable[int] | None = None) -> Counter[str]:
        """Opcodes that begin so, with their modifiers: `LDG` shows the widths of loads, those without a width being of 32 bits."""
        chosen = range(len(self.instructions)) if chosen is None else chosen
        found = (self.instructions[i].opcode for i in chosen)
        return Counter(opcode for opcode in found if opcode.startswith(beginning))

    @cached_property
    def loops(self) -> list[Loop]:
        """Every loop, inner ones before those around them; not those of one instruction that wait for a barrier."""
        found: dict[int, int] = {}
        for i, x in enumerate(self.instructions):
            first = self._at.get(x.target, i + 1) if x.target is not None else i + 1
            if first <= i:
                found[first] = max(found.get(first, 0), i + 1)
        loops = [Loop(*x) for x in found.items() if not self._waits(*x)]
        return sorted(loops, key=lambda loop: loop.end - loop.first)

    def _waits(self, first: int, end: int) -> bool:
        """Whether it only asks a barrier again, or is the branch to itself behind the last instruction."""
        body = self.instructions[first:end]
        return len(body) == 1 or (
            len(body) <= 8 and any(x.opcode.startswith(("SYNCS", "NANOSLEEP")) for x in body)
        )

    def loop_with(self, kind: str) -> Loop:
        """Return the innermost loop that has instructions of this class, the one with most of them."""
        inner = [x for x in self.loops if self.counts(range(*x))[kind]]
        if not inner:
            raise ValueError(f"{self.name} has no loop with instructions of the class {kind}")
        least = [x for x in inner if not any(x.first <= y.first and y.end <= x.end and x != y for y in inner)]
        return max(least, key=lambda loop: self.counts(range(*loop))[kind])

    def successors(self, i: int) -> list[int]:
        """Indices of what may be issued next."""
        x = self.instructions[i]
        after = [] if x.ends or i + 1 == len(self.instructions) else [i + 1]
        return after + ([self._at[x.target]] if x.target in self._at else [])

    def shortest(self, start: int = 0, through: int | None = None) -> list[int]:
        """Indices of the shortest way from one instruction to an exit, by way of another: each loop's body at most once.

        Where a kernel has a way with less work for most of its tiles, that is this one.
        """
        if through is not None and through != start:
            first = self._way(start, lambda i: i == through)
            return first[:-1] + self.shortest(through)
        return self._way(start, lambda i: self.instructions[i].opcode.startswith("EXIT"))

    def _way(self, start: int, found: Callable[[int], bool]) -> list[int]:
        came: dict[int, int] = {start: start}
        front = [start]
        while front:
            following = []
            for i in front:
                if found(i):
                    way = [i]
                    while way[-1] != start:
                        way.append(came[way[-1]])
                    return way[::-1]
                for j in self.successors(i):
                    if j not in came:
                        came[j] = i
                        following.append(j)
            front = following
        raise ValueError(f"{self.name}: no way on from {self.instructions[start].address:#x}")

    def usual(self, trips: Sequence[float | tuple[float, float]] = (), part: float = 1) -> dict[str, float]:
        """Instructions by class of the longest way to an exit that calls no function, a loop's as often as `trips` says.

        Loops go by address; those without trips are never entered. So rare ways count where they are as long as the usual one,
        but for a `part` of less than one: of what can be skipped on the way by all those loops and the first exchange between
        lanes, that share counts. Of a loop whose trips are a pair, the second is such a share of its body.
        """
        edges = {
            i: [j for j in self.successors(i) if not self._rare(i, j)] for i in range(len(self.instructions))
        }
        reached, front = {0}, [0]
        while front:
            front = [j for i in front for j in edges[i] if j not in reached]
            reached.update(front)
        ends: dict[int, int] = {}
        for i in sorted(reached):
            for j in edges[i]:
                if j <= i:
                    ends[j] = max(ends.get(j, 0), i + 1)
        loops = [range(first, end) for first, end in sorted(ends.items())]
        if len(trips) > len(loops):
            raise ValueError(f"{self.name} has {len(loops)} loops, not {len(trips)}")
        pairs = [x if isinstance(x, tuple) else (x, 1.0) for x in trips]
        pairs += [(0.0, 1.0)] * (len(loops) - len(trips))
        times = dict.fromkeys(reached, 1.0)
        for loop, (count, _) in zip(loops, pairs, strict=True):
            times |= {i: times[i] * count for i in loop if i in times}
        passed = {loop[0] for loop in loops}
        passed |= set([i for i, x in enumerate(self.instructions) if x.kind == "shuffle"][:1])
        whole = range(len(self.instructions)), (1.0, part)
        for loop, (_, share) in [*zip(loops, pairs, strict=True)][::-1] + [whole]:  # inner ones first
            if share < 1 and times[loop[0]]:
                inner = {i for other in loops if loop[0] < other[0] < loop[-1] for i in other}
                most, least = (self._once(loop, edges, times, passed, inner, sign) for sign in (1, -1))
                kept = (least + share * (most - least)) / most
                times |= {i: times[i] * kept for i in loop if i in times}
        longest: dict[int, tuple[float, int | None]] = {}
        for i in sorted(reached, reverse=True):
            if times[i]:
                ways = [(longest[j][0], j) for j in edges[i] if j > i and j in longest]
                best = max(ways, default=None)
                if best or self.instructions[i].opcode == "EXIT":
                    longest[i] = (times[i] + (best[0] if best else 0), best[1] if best else None)
        counts: dict[str, float] = {}
        at: int | None = 0
        while at is not None:
            kind = self.instructions[at].kind
            counts[kind] = counts.get(kind, 0) + times[at]
            at = longest[at][1]
        return counts

    def _once(
        self,
        loop: range,
        edges: dict[int, list[int]],
        times: dict[int, float],
        passed: set[int],
        inner: set[int],
        sign: int,
    ) -> float:
        """What one turn of a loop issues on its longest way, or for a negative sign on its shortest by most that are to be passed.

        Loops in it count as they do on the longest way.
        """
        best: dict[int, tuple[int, float]] = {}  # of those passed, instructions
        for i in reversed(loop):
            if times.get(i):
                ways = [best[j] for j in edges[i] if j > i and j in best]
                ways += [(0, 0.0)] * (loop[0] in edges[i] or self.instructions[i].opcode == "EXIT")
                if ways:
                    better = 1 if i in inner else sign
                    found, issued = max(ways, key=lambda way: (way[0], better * way[1]))
                    best[i] = (found + (sign < 0 and i in passed), issued + times[i])
        return best[loop[0]][1]

    def _rare(self, i: int, j: int) -> bool:
        """Whether the step leads into a function, or to where lanes that have parted exchange values."""
        opcode = self.instructions[i].opcode
        return opcode.startswith("CALL") or (opcode == "BRA.DIV" and j != i + 1)


# Of one multiprocessor, by compute capability: bytes of shared memory, threads, thread blocks.
_MULTIPROCESSOR = {
    80: (167_936, 2048, 32),
    90: (233_472, 2048, 32),
    100: (233_472, 2048, 32),
    120: (102_400, 1536, 24),
}


def blocks_at_once(usage: Usage, threads: int, dynamic_shared: int, capability: int) -> int:
    """Thread blocks that a multiprocessor holds at one time."""
    shared, most_threads, most_blocks = _MULTIPROCESSOR[capability]
    warps = -(-threads // 32)
    # Each of its four parts has 16,384 registers and gives them to warps by 256.
    by_registers = 16384 // (-(-max(usage.registers, 1) // 8) * 256) * 4 // warps
    by_shared = shared // (-(-(usage.shared + dynamic_shared) // 128) * 128 + 1024)
    return min(by_registers, by_shared, most_threads // (32 * warps), most_blocks)


def tool(name: str) -> Path:
    """Find a tool of the CUDA toolkit or, where there is none, of the triton wheel."""
    found = shutil.which(name)
    if found:
        return Path(found)
    triton = find_spec("triton")
    path = Path(str(triton.origin)).parent / "backends/nvidia/bin" / name if triton else Path(name)
    if not path.exists():
        raise FileNotFoundError(f"{name}: neither on PATH nor in the package triton")
    return path


def _run(option: str, cubin: Path) -> str:
    done = subprocess.run([tool("cuobjdump"), option, cubin], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{cubin}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def kernels(cubin: Path | bytes, only: str = "") -> dict[str, Kernel]:
    """Read the kernels of a cubin, or of a library that has cubins in it, whose (mangled) name contains `only`."""
    if isinstance(cubin, bytes):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            return kernels(Path(file.name), only)
    usages = {name: Usage(*map(int, numbers)) for name, *numbers in _USAGE.findall(_run("-res-usage", cubin))}
    parts = _FUNCTION.split(_run("-sass", cubin))
    found = {}
    for name, code in zip(parts[1::2], parts[2::2], strict=True):
        if only in name:
            lines = _LINE.findall(code)
            instructions = [
                Instruction(int(at, 16), predicate, opcode, operands.strip())
                for at, predicate, opcode, operands in lines
            ]
            found[name] = Kernel(name, instructions, usages[name])
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="sass", description=__doc__.split("\n\n")[0])
    parser.add_argument("cubin", type=Path)
    parser.add_argument("--only", default="", help="kernels whose mangled name contains this")
    options = parser.parse_args()
    for kernel in kernels(options.cubin, options.only).values():
        print(kernel.name, *(f"{name} {n}" for name, n in kernel.usage._asdict().items()), sep="  ")
        ways: dict[str, Iterable[int] | None] = {"whole": None, "shortest way": kernel.shortest()}
        ways |= {f"loop at {kernel.instructions[x.first].address:#x}": range(*x) for x in kernel.loops}
        for name, way in ways.items():
            counts = kernel.counts(way)
            print(
                f"  {name}: {counts.total()} =", ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
