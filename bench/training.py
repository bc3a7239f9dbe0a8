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
    machine, results = record["machine"], record["results"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    parts = [
        f"{machine['device']}, {threads}, load {machine['load']:.0f} of other work, torch {machine['torch']}, commit {machine['commit']}.",
        markdown(
            ("a step", "of", "", "takes", "beside", "takes", "ratio", "bar"),
            [
                *(
                    row
                    for found in results.get("step", [])
                    for row in _beside(found, "contrastive", STEP_BAR)
                ),
                *(row for found in results.get("pieces", []) for row in _beside(found, "plain", PIECES_BAR)),
            ],
        ),
    ]
    for found in results.get("memory", []):
        parts.append(
            f"A step of {found['batch']:,} pairs of {found['model']} in {found['pieces']} pieces, {found['precision']}, takes "
            f"{found['bytes'] / 1e9:.2f} GB, the whole process, PyTorch included (bar: {MEMORY_BAR / 1e9:.0f} GB)."
        )
    for found in results.get("processes", []):
        parts.append(
            f"{found['batch']} pairs of {found['model']}, {found['precision']}, over processes on the same cores:"
        )
        rows = [
            (count, f"{of['threads']}", duration(of["seconds"]["p50"]), f"{of['images_per_s']:.0f}")
            for count, of in found["of"].items()
        ]
        parts.append(markdown(("processes", "threads each", "a step", "images/s"), rows))
    return "\n" + "\n\n".join(parts) + "\n\n"


def _beside(found: dict[str, Any], held: str, bar: float) -> list[tuple[str, ...]]:
    """Return a row for each that the first one is beside; ``held`` is the one with a bar."""
    first, *others = found["seconds"]
    times = {name: duration(spent["p50"]) for name, spent in found["seconds"].items()}
    pieces = f" in {found['pieces']} pieces" if "pieces" in found else ""
    return [
        (
            first,
            f"{found['model']}, {found['batch']} pairs{pieces}",
            found["precision"],
            times[first],
            name,
            times[name],
            f"{found['ratios'][name]:.3f}",
            f"{bar:.2f}" if name == held else "",
        )
        for name in others
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
    for name, known in (("parts", RUNS), ("precision", ("fp32", "bf16"))):
        if unknown := set(getattr(arguments, name).split(",")) - set(known):
            parser.error(f"--{name} must be of {', '.join(known)}, got {', '.join(sorted(unknown))}")
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
