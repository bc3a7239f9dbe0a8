"""The machine: what a record says of it, and the ceilings that its figures are held against."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cfmvit import __version__
from cfmvit._machine import cpu_name
from cfmvit.bench.timing import interleaved

PACKAGES = ("torchvision", "open_clip_torch", "timm", "triton", "numpy", "hotcoco")
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes, far beyond every cache
SIDE = {"cpu": 2048, "cuda": 8192}
STATE = "clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu,clocks_event_reasons.active"


def header(device: str) -> dict[str, Any]:
    """Say where and with what a run was made."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cfmvit": __version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "device_type": device,
        "driver": _driver() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def ceilings(device: str, dtypes: Iterable[torch.dtype], seconds: float) -> dict[str, Any]:
    """Measure copy bandwidth (bytes read and written) and the rate of matrix products by dtype, the best of several."""
    source = torch.empty(COPIED[device], dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source).zero_()
    runs = {"copy": lambda: target.copy_(source)}
    side = SIDE[device]
    for dtype in dtypes:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        runs[_name(dtype)] = lambda a=a, b=b: a @ b
    best = {name: min(times) for name, times in interleaved(runs, device, seconds).items()}
    return {
        "copy_bytes_per_s": 2 * COPIED[device] / best.pop("copy"),
        "flops_per_s": {name: 2 * side**3 / time for name, time in best.items()},
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def under_load() -> str | None:
    """Return what nvidia-smi says of the clocks, the power and their limits while the matrix units work."""
    a = torch.randn(SIDE["cuda"], SIDE["cuda"], device="cuda", dtype=torch.bfloat16)
    for _ in range(500):  # more than half a second, which the queries fall into
        a @ a
    found = _output("nvidia-smi", f"--query-gpu={STATE}", "--format=csv,noheader")
    torch.cuda.synchronize()
    return found and ", ".join(f"{name} {value}" for name, value in zip(STATE.split(","), found.split(", ")))


def _commit() -> str | None:
    if given := os.environ.get("CFMVIT_COMMIT"):  # of a copy without git
        return given
    here = Path(__file__).resolve().parent
    commit = _output("git", "-C", str(here), "rev-parse", "--short=12", "HEAD")
    return commit and commit + (
        "+" if _output("git", "-C", str(here), "status", "--porcelain", "-uno") else ""
    )


def _driver() -> str | None:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found and found.splitlines()[0]


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    """Print the machine, its ceilings and its state under load, as JSON in a line."""
    parser = argparse.ArgumentParser(prog="machine", description=main.__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    found = header(device) | {"ceilings": ceilings(device, [torch.bfloat16, torch.float32], 0.5)}
    print(json.dumps(found | {"state": under_load() if device == "cuda" else None}))


if __name__ == "__main__":
    main()
