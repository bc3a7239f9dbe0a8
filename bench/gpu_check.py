"""Build here, run the GPU tests, compute-sanitizer over a few of them, and the benchmarks; see gpu_check.sh.

Prints a short table last, and writes it with the machine to gpu_check.json, the figures to bench.json, contrastive.json and
variants.json beside it. Needs no network; where the build tools are missing it compiles directly (build_bare.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from build_bare import BUILD, ROOT, architecture

SHARES = {"build": 3, "test": 4, "sanitize": 5, "bench": 4}
# One process, without the plugin that pyproject.toml's options name: a bare machine may lack it.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=-ra --import-mode=importlib", "-m", "gpu"]
# The tools and whether they look at this package's CUDA kernels alone; initcheck must see who wrote what they read. Triton's kernels
# have names of their own.
TOOLS = {"memcheck": True, "racecheck": True, "initcheck": False, "synccheck": True}
# The installed package or the bare build: never the source folder, which has no libraries.
ENVIRONMENT = {
    **os.environ,
    "PYTHONSAFEPATH": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(BUILD), os.environ.get("PYTHONPATH")])),
}


@dataclass
class Outcome:
    """How a step ended; ``note`` is its last line."""

    step: str
    status: str
    seconds: float
    note: str

    @property
    def failed(self) -> bool:
        """Neither passed nor skipped."""
        return self.status not in ("passed", "skipped")


def run(step: str, command: list[str], seconds: float, **environment: str) -> Outcome:
    """Run a command within its time, showing what it prints."""
    print(f"\n== {step}: {shlex.join(command)}", flush=True)
    start, last = time.monotonic(), ""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**ENVIRONMENT, **environment}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    # A timer would wait for a silent program's next line; an alarm does not.
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1))
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip(" =\n") or last
    code = process.wait()
    signal.setitimer(signal.ITIMER_REAL, 0)
    taken = time.monotonic() - start
    over = code == -signal.SIGKILL and taken >= seconds - 1
    status = "passed" if code == 0 else f"over {seconds:.0f} s" if over else f"failed ({code})"
    return Outcome(step, status, round(taken, 1), last[:100])


def build(seconds: float, options: argparse.Namespace) -> list[Outcome]:
    """Install for the GPU here, with the build tools or without."""
    shutil.rmtree(BUILD, ignore_errors=True)
    start = time.monotonic()
    pip = [
        *(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-build-isolation",
            "--no-deps",
            "--editable",
            str(ROOT),
        ),
        f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={architecture()}",
    ]
    outcomes = [run("build", pip, seconds)]
    if outcomes[0].failed:
        left = seconds - (time.monotonic() - start)
        outcomes = [run("build bare", [sys.executable, str(ROOT / "bench" / "build_bare.py")], left)]
    return outcomes + [run("info", [sys.executable, "-m", "cfmvit", "info"], 60)]


def test(seconds: float, options: argparse.Namespace) -> list[Outcome]:
    """Run the tests that a GPU adds."""
    return [run("test", [*PYTEST, *options.pytest.split()], seconds)]


def sanitize(seconds: float, options: argparse.Namespace) -> list[Outcome]:
    """Run each tool of compute-sanitizer over a few tests."""
    if shutil.which("compute-sanitizer") is None:
        return [Outcome("sanitize", "skipped", 0, "no compute-sanitizer here")]
    ours = ["--kernel-name", "kernel_substring=cfmvit"]
    of_ops = ["-k", options.sanitized, "tests/ops"]
    jobs = [(tool, tool, ours if alone else [], of_ops) for tool, alone in TOOLS.items()]
    jobs.append(("triton", "memcheck", [], ["-k", "odd_sizes", "tests/triton_kernels"]))
    outcomes, end = [], time.monotonic() + seconds
    for done, (name, tool, kernels, tests) in enumerate(jobs):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        command += [*kernels, *PYTEST, "-x", *tests]
        share = (end - time.monotonic()) / (len(jobs) - done)
        # Blocks of torch's caching allocator would hide where a tensor ends.
        outcomes.append(run(name, command, share, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))
    return outcomes


def bench(seconds: float, options: argparse.Namespace) -> list[Outcome]:
    """Measure the contrastive losses at the sizes of their targets beside compiled peers, their variants, then all ops."""
    outcomes, end = [], time.monotonic() + seconds
    commands = {
        "contrastive": ["cfmvit", "bench", *options.contrastive.split(), "--device", "cuda"],
        "variants": ["cfmvit.bench.contrastive_variants", *options.variants.split()],
        "bench": ["cfmvit", "bench", *options.bench.split(), "--device", "cuda"],
    }
    for done, (name, given) in enumerate(commands.items()):
        command = [sys.executable, "-m", *given]
        share = (end - time.monotonic()) / (len(commands) - done)
        outcomes.append(run(name, [*command, "--output", str(options.results / f"{name}.json")], share))
    return outcomes


PARTS = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}


def header() -> dict[str, str | None]:
    """Say where and with what the check was made."""
    code = "import json; from cfmvit.bench import machine; print(json.dumps(machine.header(%r)))"
    command = [sys.executable, "-c", code % ("cuda" if torch.cuda.is_available() else "cpu")]
    found = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    return json.loads(found.stdout) if found.returncode == 0 else {"torch": torch.__version__}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together; default 540")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "bench" / "results", help="folder of the JSON files"
    )
    parser.add_argument(
        "--pytest",
        default="tests/ops tests/triton_kernels tests/models",
        help="what the test part gives to pytest",
    )
    parser.add_argument(
        "--sanitized",
        default="same_bits or nothing or hostile or no_check",
        help="pytest -k for the sanitizers",
    )
    parser.add_argument("--bench", default="--dtype bfloat16 --seconds 0.5", help="options of cfmvit bench")
    parser.add_argument(
        "--contrastive",
        default="contrastive --dtype bfloat16 --seconds 0.3 --compile "
        "--size 256x768,1024x768,4096x768,16384x768,32768x768,65536x768",
        help="options of its run for the contrastive losses",
    )
    parser.add_argument("--variants", default="--seconds 0.3", help="options of contrastive_variants.py")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"PART must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    """Run the parts and report; 0 where all that ran passed on a GPU."""
    options = arguments()
    parts, outcomes = options.parts or list(PARTS), []
    end = time.monotonic() + options.seconds
    for number, part in enumerate(parts):
        if part != "build" and not torch.cuda.is_available():
            outcomes.append(Outcome(part, "skipped", 0, "PyTorch sees no GPU"))
            continue
        left = end - time.monotonic()
        outcomes += PARTS[part](left * SHARES[part] / sum(SHARES[p] for p in parts[number:]), options)
    machine = header()
    options.results.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "steps": [asdict(outcome) for outcome in outcomes]}
    (options.results / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + ", ".join(f"{name} {machine.get(name)}" for name in ("device", "driver", "torch", "commit")))
    for outcome in outcomes:
        print(f"{outcome.step:10} {outcome.status:12} {outcome.seconds:7.1f} s  {outcome.note}")
    if not torch.cuda.is_available():
        print("gpu_check: PyTorch sees no GPU, so nothing beyond the build was checked")
        return 1
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
