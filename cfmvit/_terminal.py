"""Text of strangers on a terminal."""

from __future__ import annotations

import logging


def printable(text: str) -> str:
    """Return a text on one line, with control characters written as escapes: they could move the cursor, or worse."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class PrintableFormatter(logging.Formatter):
    """What is logged, as ``printable`` has it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
