"""Programs that tests run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

ROOT = Path(__file__).resolve().parents[1]
# What ranks of any test import: one process forks them all, and imports only what it is told before the first. It passes over what is
# not installed.
PRELOADED = [
    "pytest",
    "cfmvit.ops",
    "cfmvit.detection",
    "cfmvit.pretrain",
    "open_clip",
    "torch.utils.tensorboard",
]


def run(*command: str | Path, **environment: str) -> str:
    """Run a program; what it printed, from the sanitizers' report on if there is one, is the failure's message."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    report = re.search("ERROR: AddressSanitizer|runtime error:", done.stdout)
    shown = done.stdout[report.start() :][:4000] if report else done.stdout[-8000:]
    assert done.returncode == 0, f"{command[0]} exits with {done.returncode}\n{shown}"
    return done.stdout


def run_ranks(main: Callable[..., None], world: int, *arguments: Any) -> None:
    """Run `main(rank, world, *arguments)` in `world` processes, forked from one that has only imported what takes seconds."""
    _start(main, world, *arguments)


def exit_codes(main: Callable[..., None], world: int, *arguments: Any) -> list[int | None]:
    """Run `main(rank, world, port, *arguments)` likewise, whatever becomes of it; return how each process ended."""
    context = _start(main, world, free_port(), *arguments, join=False)
    try:
        for process in context.processes:
            process.join(600)
        return [process.exitcode for process in context.processes]
    finally:
        for process in context.processes:
            process.kill()


def be_rank(rank: int, world: int, port: int) -> None:
    """Be what torchrun makes of a process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def free_port() -> int:
    """Return a port that nobody listens at now."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def _start(main: Callable[..., None], world: int, *arguments: Any, join: bool = True) -> Any:
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # they import `main` by its name; last: an installed cfmvit comes first
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    return multiprocessing.start_processes(
        _one_thread, (main, world, *arguments), nprocs=world, join=join, start_method="forkserver"
    )


def _one_thread(rank: int, main: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    main(rank, *arguments)


def tool(name: str) -> str:
    """Return a program that its Python package brings, or that stands in this environment or in the system."""
    brought = [
        getattr(importlib.import_module(name), folder, "")
        for folder in ("CMAKE_BIN_DIR", "BIN_DIR")
        if importlib.util.find_spec(name)
    ]
    places = [*filter(None, brought), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"no {name} to build with")
    return found


def cmake() -> str:
    """Return a cmake that this build can use."""
    found = tool("cmake")
    version = re.search(r"version (\d+)\.(\d+)", run(found, "--version"))
    if version is None or tuple(map(int, version.groups())) < (3, 28):
        pytest.skip("no cmake of at least 3.28 to build with")
    return found
