"""Progress of long work: a bar with rate and time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from cfmvit._require import require


def progress(total: int, *, desc: str, unit: str = "img", initial: int = 0) -> Any:
    """Return a tqdm bar for ``total`` units.

    On a terminal it redraws in place; elsewhere it prints one line every 30 s, so that a log stays readable.
    Ranks other than 0 of a distributed run print nothing.
    """
    tqdm = require("tqdm", extra="models").tqdm
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        desc=desc,
        unit=unit,
        disable=int(os.environ.get("RANK", "0")) != 0,
        mininterval=0.2 if terminal else 30.0,
        maxinterval=10.0 if terminal else 30.0,
        dynamic_ncols=terminal,
        ascii=None if terminal else True,
    )


class _Lines:
    """A log's lines, of what tqdm would draw in place after a carriage return."""

    def __init__(self, log: TextIO) -> None:
        self._log = log

    def write(self, drawn: str) -> None:
        """Write a line of what is not blank; a bar below another moves the cursor."""
        if line := drawn.replace("\x1b[A", "").strip():
            self._log.write(f"{line}\n")

    def flush(self) -> None:
        """Let it be seen."""
        self._log.flush()
