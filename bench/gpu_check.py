"""What only a GPU can answer, within its own clock: `first` proves, `second` measures; see gpu_check.sh.

All that is printed goes to OUTDIR/first.log or second.log as it comes, how each step ended to first.json or second.json; `second` adds
bench.json, forms.json and ncu.csv; summary.md is made of what there is. Needs no network, no git and no build tools.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from build_bare import BUILD, ROOT, architecture
from gpu_steps import Job, Runner, Step
from gpu_summary import summary

SECONDS, FOR_SUMMARY = 400.0, 15.0
# What each part has of the time, in these proportions; what one leaves is for those after it.
FIRST = dict(build=200, machine=20, smoke=50, test=110, sanitize=70)
SECOND = dict(
    build=300, machine=20, contrastive=65, forms=40, reconstruction=40, regions=45, masking=40,
    training=60, calls=20, profile=25, ncu=50, peers=100, again=20,
)  # fmt: skip
BUILD_TOOLS = ("scikit_build_core", "pybind11")
OPS = {
    "contrastive": ("info_nce", "siglip_loss"),
    "reconstruction": ("masked_cosine_loss", "linear_masked_cosine_loss", "masked_pixel_loss"),
    "regions": ("roi_align", "multilevel_roi_align", "pool_regions", "score_regions"),
    "masking": ("random_masking", "gather_tokens", "split_tokens", "restore_tokens", "gather_patches"),
}
ALL = [op for ops in OPS.values() for op in ops]
# Options of `cfmvit bench` by part.
BENCH = {
    "contrastive": "--dtype bfloat16 --size 32768x768 --passes forward,both --compile --warm",
    "peers": "--dtype bfloat16 --size 4096x768,65536x512,65536x768,65536x1024 --passes both --compile --warm",
    "reconstruction": "--dtype bfloat16 --size large",
    "regions": "--dtype bfloat16 --size large,channels-last",
    "masking": "--dtype float32,bfloat16 --size large",  # noise is float32
    "calls": "--dtype float32 --size any",
}
# Peers of the contrastive losses hold several matrices of logits, which must not find their room in pieces.
ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
# A file in each process and no plugin, which a bare machine may lack; warnings of another torch are not errors. Names are printed before
# their tests run, and a test that takes long tells where it is.
PYTEST = (
    *(sys.executable, "-m", "pytest", "-v", "--tb=short", "-rfE", "-p", "no:cacheprovider"),
    *("-o", "filterwarnings=", "-o", "addopts=--import-mode=importlib", "-o", "console_output_style=classic"),
)
NCU = (
    *("ncu", "--clock-control", "none", "--profile-from-start", "off", "--nvtx", "--csv", "--page", "raw"),
    # Time, traffic and sectors a request, pipes, instructions, reasons of stalls.
    *("--section", "SpeedOfLight", "--section", "MemoryWorkloadAnalysis"),
    *("--section", "MemoryWorkloadAnalysis_Tables", "--section", "ComputeWorkloadAnalysis"),
    *("--section", "InstructionStats", "--section", "SchedulerStats", "--section", "WarpStateStats"),
    *("--section", "LaunchStats", "--section", "Occupancy"),
)


class Check:
    """One of the two commands: its options, what was found, and where that is written."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = "cpu" if options.dry else "cuda"
        # Never the source folder, which has no libraries: the installed package or the bare build.
        python = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        environment = {**os.environ, **python, "CFMVIT_TRACEBACK": "1", "COLUMNS": "200"}
        environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if options.commit:
            environment["CFMVIT_COMMIT"] = options.commit
        self.runner = Runner(self.folder / f"{options.command}.log", ROOT, environment, self.note)
        self.end = self.runner.start + options.seconds - FOR_SUMMARY
        self.steps: list[Step] = []
        self.write()

    def note(self, step: Step) -> None:
        """Keep how a step ended."""
        self.steps.append(step)
        self.write()

    def write(self) -> None:
        """Write how the steps so far ended, as JSON and for reading."""
        record = {
            "command": self.options.command,
            "commit": self.options.commit or "not given",
            "torch": torch.__version__,
            "steps": [asdict(step) for step in self.steps],
        }
        (self.folder / f"{self.options.command}.json").write_text(json.dumps(record, indent=1) + "\n")
        (self.folder / "summary.md").write_text(summary(self.folder))

    def go(self) -> bool:
        """Go through the parts; return whether all is well."""
        shares = FIRST if self.options.command == "first" else SECOND
        parts = [name for name in shares if not self.options.only or name in self.options.only]
        for number, part in enumerate(parts):
            left = self.end - time.monotonic()
            seconds = left * shares[part] / sum(shares[name] for name in parts[number:])
            self.bench(part, seconds) if part in BENCH else getattr(self, part)(seconds)
            if self.runner.interrupted or (part == "build" and any(step.failed for step in self.steps)):
                break
        return not any(step.failed for step in self.steps)

    def python(self, name: str, words: list[str], seconds: float, **environment: str) -> list[Step]:
        """Run a program of Python."""
        return self.runner.run_all([Job(name, [sys.executable, *words], environment)], seconds)

    def build(self, seconds: float) -> None:
        """Install for the GPU here, compiling directly without the build tools; CUDA that can't be built is an error."""
        missing = [tool for tool in BUILD_TOOLS if find_spec(tool) is None]
        missing += [] if shutil.which("cmake") or find_spec("cmake") else ["cmake"]
        if missing:
            self.runner.say(f"no {', '.join(missing)} here: bench/build_bare.py compiles without")
            words = [str(ROOT / "bench" / "build_bare.py")]
            paths = [str(BUILD), self.runner.environment.get("PYTHONPATH")]
            self.runner.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        else:
            words = ["-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--editable"]
            words += [str(ROOT), f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={architecture()}"]
        wanted = {"CFMVIT_CUDA": "OFF" if self.options.dry else "ON"}
        if not self.python("build", words, seconds, **wanted)[0].failed:
            self.python("info", ["-m", "cfmvit", "info"], 60)

    def machine(self, seconds: float) -> None:
        """Measure the ceilings; note clocks and power under load."""
        self.python("machine", ["-m", "cfmvit.bench.machine", "--device", self.device], seconds)

    again = machine

    def smoke(self, seconds: float) -> None:
        """Call every op once, forward and backward, each in a process of its own."""
        command = [sys.executable, "-m", "cfmvit.bench.smoke", "--device", self.device]
        command += ["--size", "tiny" if self.options.dry else "tiny,small"]
        jobs = [Job(f"smoke {op}", [*command, op]) for op in self.options.ops]
        self.runner.run_all(jobs, seconds, self.options.at_once)

    def test(self, seconds: float) -> None:
        """Run the tests that a GPU adds, each file in a process of its own."""
        paths = [ROOT / path for path in self.options.tests.split()]
        files = [file for path in paths for file in (sorted(path.rglob("test_*.py")) or [path])]
        nothing = {5: "passed: no test of a GPU in it"}
        jobs = [
            Job(f"{file.parent.name}/{file.stem}", self.pytest(str(file)), fine=nothing) for file in files
        ]
        self.runner.run_all(jobs, seconds, self.options.at_once)

    def pytest(self, *words: str) -> list[str]:
        """Return a command of pytest."""
        of_gpu = [] if self.options.dry else ["-m", "gpu"]
        return [*PYTEST, "-o", f"faulthandler_timeout={self.options.hang}", *of_gpu, *words]

    def sanitize(self, seconds: float) -> None:
        """Let compute-sanitizer watch a few tests."""
        if shutil.which("compute-sanitizer") is None:
            return self.note(Step("sanitize", "skipped: no compute-sanitizer here"))
        jobs = []
        for tool in ("memcheck", "racecheck"):
            watch = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
            ours = ["--kernel-name", "kernel_substring=cfmvit"]  # Triton's kernels have names of their own
            ops = [*watch, *ours, *self.pytest("-k", self.options.sanitized, "tests/ops")]
            triton = [*watch, *self.pytest("-k", "odd_sizes", "tests/triton_kernels")]
            # Blocks of torch's caching allocator would hide where a tensor ends.
            alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            jobs += [Job(f"{tool} ops", ops, alone), Job(f"{tool} triton", triton, alone)]
        self.runner.run_all(jobs, seconds, self.options.at_once)

    def bench(self, part: str, seconds: float) -> None:
        """Measure a family into bench.json."""
        calls, family = part == "calls", "contrastive" if part == "peers" else part
        ops = [op for op in self.options.ops if calls or op in OPS[family]]
        if not ops:
            return
        words = [*BENCH[part].split(), "--seconds", "0.3", "--device", self.device]
        if self.options.dry:  # what comes later counts
            words.remove("--compile") if "--compile" in words else None
            words += ["--size", "any" if calls else "tiny", "--seconds", "0.001"]
        words += [f"call_{op}" if calls else op for op in ops]
        words += ["--add", "--output", str(self.folder / "bench.json")]
        added = ALLOCATOR if family == "contrastive" else {}
        self.python(part, ["-m", "cfmvit", "bench", *words], seconds, **added)

    def forms(self, seconds: float) -> None:
        """Measure the forms of the contrastive kernels beside each other."""
        if self.options.dry:
            return self.note(Step("forms", "skipped: they need a GPU"))
        words = ["-m", "cfmvit.bench.contrastive_forms", "--size", "32768x768,4096x768"]
        self.python("forms", [*words, "--output", str(self.folder / "forms.json")], seconds)

    def training(self, seconds: float) -> None:
        """Time a step of pretraining beside the contrastive loss alone and open_clip's, and pieces; second.json has the record."""
        words = ["-m", "cfmvit.bench.training", "--device", self.device, "--parts", "step,pieces,memory"]
        words += ["--precision", "bf16", "--seconds", "0.01" if self.options.dry else "5"]
        self.python("training", [*words, "--size", "tiny" if self.options.dry else "large"], seconds)

    def profile(self, seconds: float) -> None:
        """Tell the time of each kernel in a forward and backward pass."""
        size = "tiny" if self.options.dry else "32768x768,large"
        words = ["-m", "cfmvit.bench.kernels", "--device", self.device, "--size", size]
        self.python("profile", [*words, *self.options.ops], seconds)

    def ncu(self, seconds: float) -> None:
        """Read the counters of each kernel of a call of each op at a small batch, into ncu.csv."""
        if shutil.which("ncu") is None:
            return self.note(Step("ncu", "skipped: no ncu here"))
        end, table = time.monotonic() + seconds, self.folder / "ncu.csv"
        table.unlink(missing_ok=True)
        families = {name: [op for op in ops if op in self.options.ops] for name, ops in OPS.items()}
        for number, (family, ops) in enumerate(families.items()):
            rows = self.folder / f"ncu-{family}.csv"  # written at once, when all its kernels are done
            program = [sys.executable, "-m", "cfmvit.bench.kernels", "--ncu", "--device", self.device]
            program += ["--size", "tiny" if self.options.dry else "small", *ops]
            share = (end - time.monotonic()) / (len(families) - number)
            if ops:
                self.runner.run_all([Job(f"ncu {family}", [*NCU, "--log-file", str(rows), *program])], share)
            if rows.exists():
                with table.open("a") as file:
                    file.write(rows.read_text(errors="replace"))
                rows.unlink()


def arguments(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    names = lambda text: [name.strip() for name in text.split(",")]
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("command", choices=("first", "second"))
    parser.add_argument("folder", type=Path, metavar="OUTDIR", help="8 files at most are written there")
    parser.add_argument("commit", nargs="?", metavar="COMMIT", help="of this tree, for the records")
    parser.add_argument("--dry", action="store_true", help="all of it on a CPU, at the smallest sizes")
    parser.add_argument("--only", type=names, metavar="PARTS", help="comma-separated; default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it; default %(default)s")
    parser.add_argument("--ops", type=names, default=ALL, help="comma-separated; default: all")
    tests = "tests/ops tests/triton_kernels tests/models"
    parser.add_argument("--tests", default=tests, help="files and folders; default %(default)s")
    sanitized = "same_bits or nothing or hostile or no_check"
    parser.add_argument("--sanitized", default=sanitized, help="pytest -k for compute-sanitizer")
    parser.add_argument("--hang", type=float, default=60, help="seconds after which a test tells where it is")
    at_once = max(1, min(8, (os.cpu_count() or 2) // 2))
    parser.add_argument("--at-once", type=int, default=at_once, help="processes; default here %(default)s")
    options = parser.parse_args(words)
    known = FIRST if options.command == "first" else SECOND
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"--only must be of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the command line; 0 where all that ran passed."""
    options = arguments(words)
    if not options.dry and not torch.cuda.is_available():
        try:
            torch.cuda.init()
            why = "torch.cuda.is_available() is false"
        except (RuntimeError, AssertionError) as error:  # what torch says of the driver, or of its own build
            why = " ".join(str(error).split())
        print(f"gpu_check: no GPU to check: {why}. --dry goes through all of it on a CPU", file=sys.stderr)
        return 2
    check = Check(options)
    with check.runner.log:
        passed = check.go()
    print(f"\n{(check.folder / 'summary.md').read_text()}")
    return int(not passed)


if __name__ == "__main__":
    for sign in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # which shells let their background ignore, and all that it starts
        signal.signal(sign, signal.default_int_handler)
    sys.exit(main())
