"""Programs that tests run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

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
