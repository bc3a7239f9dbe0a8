"""What a prediction takes, piece by piece, and a folder of pictures beside its parts one after another.

    python -m cfmvit.bench.prediction --output bench/results/prediction-cpu.json --into docs/detect.md

- predict: one picture by ViT-B/16 at 1024 px with random weights, which finds as many objects as it may, so that all masks are made;
  processor time of one thread, and what the towers' products and attention would take at the rate of a large matrix product.
- folder: 50 pictures of 640 x 480 pixels by the shipped detector, on all threads, as ``cfmvit detect`` goes through them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cfmvit.bench.loading import photograph
from cfmvit.bench.machine import header
from cfmvit.bench.record import write
from cfmvit.bench.summary import put_between_marks
from cfmvit.bench.tables import markdown
from cfmvit.detection import Detector, Vocabulary
from cfmvit.detection.config import DetectorConfig, tiny_config
from cfmvit.detection.folder import detect_folder
from cfmvit.detection.image_input import prepare, read_image
from cfmvit.models import create_model
from cfmvit.report import overlay
from cfmvit.report.images import PNG

MARK = "prediction"
SIZES: dict[str, tuple[str, Callable[[], DetectorConfig]]] = {
    "b16": ("cfm_vit_b16", DetectorConfig),
    "tiny": ("cfm_vit_tiny", tiny_config),
}
LABELS = ("red circle", "blue ring", "green cross")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOWERS = ("finetuned tower", "frozen tower")
_SIDE, _BATCH = 2048, 8


def predict(size: str, precision: str, rounds: int) -> dict[str, Any]:
    """Return the processor seconds of one thread: of the whole, of each piece, and the floor of the towers."""
    name, make = SIZES[size]
    torch.manual_seed(0)
    detector = Detector(create_model(name), make()).eval()
    embeddings = F.normalize(torch.randn(1 + len(LABELS), detector.model.embed_dim), dim=-1)
    text = Vocabulary(LABELS, embeddings)
    side = detector.config.image_size
    picture = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole: list[float] = []
        pieces: dict[str, list[float]] = defaultdict(list)
        rates = []
        with _watching(detector, pieces):
            for _ in range(rounds):
                rates.append(_rate(DTYPES[precision]))
                start = time.process_time()
                found = detector.predict(picture, text, precision=precision)
                whole.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    spent = {piece: sum(times) / rounds for piece, times in pieces.items()}
    return {
        "model": name,
        "pixels": side,
        "precision": precision,
        "found": len(found),
        "seconds": statistics.mean(whole),
        "pieces": spent,
        "flops_per_s": max(rates),
        "towers_at_that_rate": _flops(detector) / max(rates),
    }


@contextmanager
def _watching(detector: Detector, seconds: dict[str, list[float]]) -> Iterator[None]:
    """Note the processor seconds of each call of a detector's pieces."""
    watched = {
        "finetuned tower": (detector.visual, "forward_features"),
        "frozen tower": (detector.model, "encode_dense"),
        "pyramid": (detector.pyramid, "forward"),
        "proposals": (detector.proposals, "forward"),
        "box head": (detector.box_head, "forward"),
        "mask head": (detector.mask_head, "forward"),
    }

    def timed(piece: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            result = call(*arguments, **options)
            seconds[piece].append(time.process_time() - start)
            return result

        return run

    for piece, (owner, method) in watched.items():
        setattr(owner, method, timed(piece, getattr(owner, method)))
    try:
        yield
    finally:
        for owner, method in watched.values():
            delattr(owner, method)


def _rate(dtype: torch.dtype) -> float:
    """Return the operations of a processor second in a large matrix product, the best of three."""
    a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    times = []
    for _ in range(4):
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return 2 * _SIDE**3 / min(times[1:])


def _flops(detector: Detector) -> int:
    """Return the operations of both towers' products and attention."""
    tower, width = detector.model.visual, detector.model.visual.width
    tokens = (detector.config.image_size // tower.patch_size) ** 2
    total = 0
    for attention in (detector._finetuned, detector._frozen):
        seen = [
            tokens if block in attention.global_blocks or not attention.window else attention.window**2
            for block in range(tower.depth)
        ]
        total += tower.depth * 24 * tokens * width**2 + 4 * tokens * width * sum(seen)
    return total


def folder(count: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of a folder, and those of its parts one after another, medians over rounds in which they take turns."""
    detector = Detector.from_pretrained()
    text = detector.vocabulary(LABELS)
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        files, rng = [Path(name) / f"{number:03}.jpg" for number in range(count)], np.random.default_rng(0)
        for file in files:
            photograph(rng).save(file, quality=90)
        for turn in range(rounds + 1):
            start = time.perf_counter()
            detect_folder(detector, files, text, Path(name) / "out", lambda found: found.salient())
            marks = [time.perf_counter() - start, *_in_turn(detector, files, text)]
            if turn:  # the first warms up
                for part, spent in zip(("folder", "read", "predict", "draw and write"), marks, strict=True):
                    times[part].append(spent)
    return {"pictures": count, "seconds": {part: statistics.median(spent) for part, spent in times.items()}}


def _in_turn(detector: Detector, files: list[Path], text: Vocabulary) -> list[float]:
    marks = [time.perf_counter()]
    pictures = [read_image(file) for file in files]
    prepared = [prepare(picture, detector.config.image_size) for picture in pictures]
    marks.append(time.perf_counter())
    chosen = []
    for first in range(0, len(prepared), _BATCH):
        seen = detector.encode(prepared[first : first + _BATCH])
        kept = [found.salient() for found in detector.predict(seen, text, threshold=0.0, masks=False)]
        detector.add_masks(seen, kept)
        chosen += kept
    marks.append(time.perf_counter())
    for file, picture, found in zip(files, pictures, chosen, strict=True):
        overlay(picture, found).save(file.with_suffix(".png"), format="PNG", **PNG)
    marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


def page(record: dict[str, Any]) -> str:
    """Return what docs/detect.md says of a record."""
    machine, runs, of_folder = record["machine"], record["predict"], record["folder"]
    pieces = list(runs[0]["pieces"])
    rows = [
        (
            piece,
            *(f"{run['pieces'][piece]:.2f} s ({run['pieces'][piece] / run['seconds']:.0%})" for run in runs),
        )
        for piece in pieces
    ]
    rows.append(("whole", *(f"{run['seconds']:.2f} s" for run in runs)))
    rows.append(("all but the towers", *(f"{1 - _towers(run) / run['seconds']:.1%}" for run in runs)))
    bare = [run["seconds"] - run["pieces"]["mask head"] for run in runs]
    shares = [f"{1 - _towers(run) / seconds:.1%}" for run, seconds in zip(runs, bare, strict=True)]
    rows.append(("the same without masks", *shares))
    rows.append(
        ("towers, of their floor", *(f"{_towers(run) / run['towers_at_that_rate']:.2f}x" for run in runs))
    )
    rows.append(("matrix rate", *(f"{run['flops_per_s'] / 1e12:.3f} TFLOP/s" for run in runs)))
    seconds, count = of_folder["seconds"], machine["threads"]
    threads = (
        "1 thread and those that read and draw"
        if count == 1
        else f"{count} threads and those that read and draw"
    )
    alone = sum(spent for part, spent in seconds.items() if part != "folder")
    parts = ", ".join(f"{part} {spent:.2f} s" for part, spent in seconds.items() if part != "folder")
    return (
        "\n"
        + "\n\n".join(
            [
                f"{machine['device']}, load {machine['load']:.0f} of other work, torch {machine['torch']}, commit {machine['commit']}. "
                f"{runs[0]['model']}, {runs[0]['pixels']} px, {len(LABELS)} labels, {runs[0]['found']} masks, one thread:",
                markdown(("processor time", *(run["precision"] for run in runs)), rows),
                f"{of_folder['pictures']} pictures of 640 x 480 by the shipped detector, {threads}: "
                f"{of_folder['pictures'] / seconds['folder']:.1f} a second, {seconds['folder']:.2f} s; its parts one after another "
                f"{alone:.2f} s ({parts}).",
            ]
        )
        + "\n\n"
    )


def _towers(run: dict[str, Any]) -> float:
    return sum(run["pieces"][tower] for tower in TOWERS)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the record as JSON in a line, and write it."""
    parser = argparse.ArgumentParser(prog="python -m cfmvit.bench.prediction", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="b16")
    parser.add_argument("--precision", default="fp32,bf16", help="comma-separated; default: %(default)s")
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON to write")
    parser.add_argument(
        "--into", type=Path, help=f"put tables between the marks <!-- {MARK} --> of this file"
    )
    options = parser.parse_args(argv)
    record = {
        "machine": header("cpu"),
        "folder": folder(options.pictures, options.rounds),
        "predict": [predict(options.size, kind, options.rounds) for kind in options.precision.split(",")],
    }
    print(json.dumps(record))
    if options.output is not None:
        write(options.output, record)
    if options.into is not None:
        put_between_marks(options.into, page(record), MARK)


if __name__ == "__main__":
    main()
