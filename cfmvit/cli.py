"""The ``cfmvit`` command."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys

from cfmvit._arguments import parse
from cfmvit._commands import EVALUATION
from cfmvit._terminal import PrintableFormatter, printable

READER_LEFT = 141  # what a shell reports of a program that SIGPIPE ends


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; an error that a user can act on is one line on stderr and exit status 2."""
    _open_standard_streams()
    if logging.lastResort is not None:  # what prints warnings where nobody has set up logging
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        try:
            return _run(parse(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        return READER_LEFT


def _run(arguments: argparse.Namespace) -> int:
    try:
        arguments.run(arguments)
    except Exception as error:
        if os.environ.get("CFMVIT_TRACEBACK") or isinstance(error, BrokenPipeError):
            raise
        message, code = _told(error)
        print(f"cfmvit {arguments.command}: {printable(message)}", file=sys.stderr)
        return code
    except KeyboardInterrupt as interrupt:
        print(f"cfmvit {arguments.command}: interrupted{_how_to_go_on(arguments)}", file=sys.stderr)
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    return 0


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    if hasattr(arguments, "resume") and any((arguments.output / "checkpoints").glob("[0-9]*")):
        return "; --resume goes on from the last checkpoint"
    if arguments.command == "study":
        return "; the same command goes on where it was"
    if (
        arguments.command == "evaluate"
        and ((arguments.output or EVALUATION) / "results.partial.jsonl").exists()
    ):
        return "; the same command goes on with the next image"
    return ""


def _told(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit status: 2 where a user can act on it, 70 where we must."""
    if isinstance(error, MemoryError):
        return f"error: out of memory {error}".rstrip(), 2
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError)):
        return f"error: {error}", 2
    return (
        f"internal error: {type(error).__name__}: {error}; this is a defect of cfmvit or a file of a kind that it does not "
        "know: CFMVIT_TRACEBACK=1 shows where it happened"
    ), 70


def _open_standard_streams() -> None:
    """Give a process that was started without one of the three a null device, or the next file opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _reader_left() -> bool:
    """Tell whether a reader of our output is gone, as ``head`` is after its lines; what follows is then dropped."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if _is_broken_pipe(stream.fileno())]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _is_broken_pipe(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
