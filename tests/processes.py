"""Programs that tests run."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

ROOT = Path(__file__).resolve().parents[1]


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


def run_ranks(main: Callable[..., None], world: int, *arguments: Any, imports: Sequence[str]) -> None:
    """Run `main(rank, world, *arguments)` in `world` processes, forked from one that has only imported what takes seconds."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["pytest", "cfmvit.ops", *imports])
    multiprocessing.start_processes(
        _one_thread, (main, world, *arguments), nprocs=world, start_method="forkserver"
    )


def _one_thread(rank: int, main: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    main(rank, *arguments)
