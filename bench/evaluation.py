"""Detection evaluation at the size of LVIS's and COCO's validation sets, beside hotcoco itself: time, memory, the same figures.

    python -m cfmvit.bench.evaluation --output bench/results/evaluation-cpu.json --into docs/system.md

Each measurement is a process of its own, from the results file to the figures. Ours checks every entry, hotcoco none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cfmvit._io import atomic_dir
from cfmvit.bench.evaluation_data import SIZES, Size, make
from cfmvit.bench.evaluation_ways import WAYS
from cfmvit.bench.machine import header
from cfmvit.bench.record import write
from cfmvit.bench.summary import put_between_marks
from cfmvit.bench.tables import duration, markdown

MARK = "evaluation"
KINDS = {"bbox": "boxes", "segm": "masks"}
# What is asked for: of hotcoco's time and memory, and of its figures.
TIME_BAR, MEMORY_BAR, DIFFERENCE_BAR = 3.0, 1.4, 1e-6
_SAME = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300", "AR@100")


def measure(folder: Path, name: str, size: Size, kind: str, repeat: int) -> dict[str, Any]:
    """Make the data where they are not there yet, and measure both ways in turn; of each the quicker run counts."""
    folder /= f"{name}-{kind}-{size.images}"
    if not folder.exists():
        with atomic_dir(folder) as made:
            make(made, size, masks=kind == "segm")
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeat):
        for way, found in runs.items():
            found.append(_run(way, folder, kind, name))
    return {
        "set": name,
        "kind": kind,
        "images": size.images,
        "detections": size.images * size.detections,
        "repeats": repeat,
        **{way: min(found, key=lambda run: run["seconds"]) for way, found in runs.items()},
    }


def _run(way: str, folder: Path, kind: str, style: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "cfmvit.bench.evaluation_ways", way, str(folder), kind, style]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    found["figures"] = {
        name: found["figures"][key]
        for name in _SAME
        for key in (name, name.replace("@", ""))  # hotcoco's name of COCO's recall
        if key in found["figures"]
    }
    return found


def difference(found: dict[str, Any]) -> float:
    """Return how far the two ways' figures are apart at most."""
    theirs, ours = found["hotcoco"]["figures"], found["cfmvit"]["figures"]
    return max(abs(theirs[name] - ours[name]) for name in theirs)


def ratio(found: dict[str, Any], what: str) -> float:
    """Return how many times hotcoco's ours is."""
    return found["cfmvit"][what] / found["hotcoco"][what]


def page(record: dict[str, Any]) -> str:
    """Return what docs/system.md says of a record."""
    machine = record["machine"]
    rows = []
    for found in record["results"]:
        cells = [
            f"{found['set'].upper()}, {found['images']:,} images, {found['detections']:,} detections",
            KINDS[found["kind"]],
        ]
        for what, shown in (("core_seconds", duration), ("seconds", duration), ("bytes", _gigabytes)):
            sides = " / ".join(shown(found[way][what]) for way in ("cfmvit", "hotcoco"))
            cells.append(f"{sides} = {ratio(found, what):.2f}")
        rows.append((*cells, f"{difference(found):.0e}" if difference(found) else "0"))
    head = ("data", "", "processor time", "time", "memory", "largest difference")
    return (
        f"{machine['device']}, {machine['threads']} threads, load {machine['load']:.0f} of other work, hotcoco "
        f"{machine['packages']['hotcoco']}, commit {machine['commit']}. cfmvit / hotcoco, of which at most {TIME_BAR:.0f} times the time "
        f"and {MEMORY_BAR} times the memory are asked for:\n\n{markdown(head, rows)}\n"
    )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and write what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m cfmvit.bench.evaluation", description=__doc__)
    parser.add_argument("--set", choices=SIZES, nargs="+", default=[*SIZES])
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=[*KINDS])
    parser.add_argument(
        "--folder", type=Path, help="where the made data lie, and stay; default: a temporary one"
    )
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--images", type=int, help="fewer than the data set has")
    parser.add_argument("--output", type=Path, help="JSON to write")
    parser.add_argument(
        "--into", type=Path, help=f"put the table between the marks <!-- {MARK} --> of this file"
    )
    arguments = parser.parse_args(argv)
    record: dict[str, Any] = {"machine": header("cpu"), "results": []}
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in arguments.set:
            size = SIZES[name].of(arguments.images or SIZES[name].images)
            for kind in arguments.kind:
                record["results"].append(measure(folder, name, size, kind, arguments.repeat))
                if arguments.output is not None:
                    write(arguments.output, record)
    print(page(record))
    if arguments.into is not None:
        put_between_marks(arguments.into, page(record), MARK)


if __name__ == "__main__":
    main()
