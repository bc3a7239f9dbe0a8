"""Steps of pretraining side by side, in one run: what masked features cost, what pieces cost, and how processes share a batch.

    python -m cfmvit.bench.training --output bench/results/training-cpu.json --into docs/scale.md

- step: CFM-ViT's beside the contrastive loss alone, and beside open_clip's own step of towers of the same size. All have the same
  images and captions of the full length, and AdamW.
- pieces: a batch in pieces that stays whole (cached gradients) beside the same pieces with a loss each, and beside one pass.
- memory: the most that a process holds in a step of 4,096 pairs in pieces, PyTorch and its libraries included.
- processes: the same batch over 1, 2 and 4 processes; threads or GPUs are shared out among them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from cfmvit.bench.machine import header
from cfmvit.bench.record import write
from cfmvit.bench.summary import put_between_marks
from cfmvit.bench.tables import duration, markdown
from cfmvit.bench.training_processes import memory, processes
from cfmvit.bench.training_steps import SIZES, pieces, steps

MARK = "training"
# What is asked for: of contrastive-only, of plain accumulation, and bytes.
STEP_BAR, PIECES_BAR, MEMORY_BAR = 1.10, 1.4, 3e9
RUNS = {"step": steps, "pieces": pieces, "memory": memory, "processes": processes}


def page(record: dict[str, Any]) -> str:
    """Return what docs/scale.md says of a record."""
    machine = record["machine"]
    lines = [f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}.", ""]
    rows: list[tuple[str, ...]] = []
    for found in record["results"]["step"]:
        what = f"step of {found['model']}, {found['batch']} pairs, {found['precision']}"
        rows += _against(what, found, "CFM-ViT", {"contrastive": STEP_BAR})
    for found in record["results"]["pieces"]:
        what = f"{found['batch']} pairs of {found['model']} in {found['pieces']} pieces, {found['precision']}"
        rows += _against(what, found, "cached", {"plain": PIECES_BAR})
    lines.append(markdown(("what", "beside", "time", "its time", "ratio", "bar"), rows))
    rows = [
        (f"{count}", f"{of['threads']}", duration(of["seconds"]["p50"]), f"{of['images_per_s']:.0f}")
        for found in record["results"]["processes"]
        for count, of in found["of"].items()
    ]
    found = record["results"]["processes"][0]
    lines += [
        "",
        f"{found['batch']} pairs of {found['model']}, {found['precision']}, over processes on the same cores:",
        "",
    ]
    lines.append(markdown(("processes", "threads each", "step", "images/s"), rows))
    for found in record["results"]["memory"]:
        lines += [
            "",
            f"A step of {found['batch']:,} pairs of {found['model']} in {found['pieces']} pieces, {found['precision']}, takes "
            f"{found['seconds']:.0f} s and {found['bytes'] / 1e9:.2f} GB, the whole process (bar: {MEMORY_BAR / 1e9:.0f} GB).",
        ]
    return "\n".join(lines) + "\n"


def _against(what: str, found: dict[str, Any], first: str, bars: dict[str, float]) -> list[tuple[str, ...]]:
    times = {name: duration(spent["p50"]) for name, spent in found["seconds"].items()}
    return [
        (
            f"{first}, {what}",
            name,
            times[first],
            times[name],
            f"{ratio:.2f}",
            f"{bars[name]:.2f}" if name in bars else "",
        )
        for name, ratio in found["ratios"].items()
    ]


def main(argv: list[str] | None = None) -> None:
    """Measure, print the record as JSON in a line, and write it."""
    parser = argparse.ArgumentParser(prog="python -m cfmvit.bench.training", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, help="default: small on the CPU, large on a GPU")
    parser.add_argument("--parts", default=",".join(RUNS), help="comma-separated; default: %(default)s")
    parser.add_argument(
        "--precision",
        default="fp32,bf16",
        help="comma-separated, the last one for processes and memory; default: %(default)s",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement, about")
    parser.add_argument("--output", type=Path, help="JSON to write")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing: take this record")
    parser.add_argument(
        "--into", type=Path, help=f"put tables between the marks <!-- {MARK} --> of this file"
    )
    arguments = parser.parse_args(argv)
    if arguments.table is not None:
        record = json.loads(arguments.table.read_text())
    else:
        record = _measured(arguments)
        print(json.dumps(record))
    if arguments.into is not None:
        put_between_marks(arguments.into, page(record), MARK)


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    size = SIZES[arguments.size or ("small" if device.type == "cpu" else "large")]
    results: dict[str, list[dict[str, Any]]] = {}
    record = {"machine": header(device.type), "results": results}
    precisions = arguments.precision.split(",")
    for part in arguments.parts.split(","):
        for precision in precisions if part in ("step", "pieces") else precisions[-1:]:
            results.setdefault(part, []).append(RUNS[part](size, device, precision, arguments.seconds))
        if arguments.output is not None:
            write(arguments.output, record)
    return record


if __name__ == "__main__":
    main()
