"""Command-line options of ``cfmvit bench``; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument(
        "ops", nargs="*", metavar="OP", help="ops or families; default: all. --list names them"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--dtype", type=_names, default=["float32", "bfloat16"], help="comma-separated")
    parser.add_argument(
        "--size", type=_names, help='comma-separated; default: "small" on the CPU, "large" on a GPU'
    )
    parser.add_argument("--passes", type=_names, help="comma-separated: forward, recorded, backward, both")
    parser.add_argument("--threads", type=_positive(int), help="of the CPU; default: PyTorch's")
    parser.add_argument("--seconds", type=_positive(float), default=1.0, help="of each measurement, about")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: slow to start")
    parser.add_argument("--warm", action="store_true", help="on a GPU, times from a warm L2 cache too")
    parser.add_argument("--output", type=Path, help="JSON to write, and a roofline picture beside it (.svg)")
    parser.add_argument(
        "--add", action="store_true", help="add to the record that --output names; no picture"
    )
    parser.add_argument("--list", action="store_true", help="print ops and sizes, and stop")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a record, and stop")
    parser.add_argument(
        "--into",
        type=Path,
        help="with --table: put a summary between the marks of this markdown file instead, and draw the picture",
    )
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="print two records side by side, and stop"
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _positive(kind: type[int] | type[float]):
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
        return value

    return parse
