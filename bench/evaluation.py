"""Detection evaluation at the size of LVIS's and COCO's validation sets, beside hotcoco itself: time, memory, the same figures.

``python -m cfmvit.bench.evaluation``; each measurement is a process of its own, from the results file to the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfmvit._io import atomic_dir


@dataclass(frozen=True)
class Size:
    """How large a data set is; federated ones are LVIS's."""

    images: int
    categories: int
    boxes: int
    detections: int  # of an image
    federated: bool


SIZES = {"lvis": Size(19_809, 1_203, 244_707, 300, True), "coco": Size(5_000, 80, 36_781, 100, False)}
_POLYGON = 42  # corners: LVIS's file has 785 bytes for a box


def make(folder: Path, size: Size, *, masks: bool, seed: int = 0) -> None:
    """Write ``truth.json`` and ``results.json``: made boxes, and detections of which some are near them.

    Args:
        masks: results have masks, rectangles as RLE, and no boxes: hotcoco takes the size of a box where there is one.
    """
    rng = np.random.default_rng(seed)
    sides = rng.integers(300, 641, (size.images, 2))
    # Few categories have most of the boxes, as everywhere.
    share = 1 / np.arange(1, size.categories + 1)
    image = np.sort(rng.integers(0, size.images, size.boxes))
    category = rng.permutation(size.categories)[
        rng.choice(size.categories, size.boxes, p=share / share.sum())
    ]
    boxes = _boxes(rng, sides[image])
    _write_truth(folder / "truth.json", size, rng, sides, image, category, boxes)
    first = np.searchsorted(image, np.arange(size.images + 1))
    with (folder / "results.json").open("w") as file:
        file.write("[")
        for place in range(size.images):
            own = np.arange(first[place], first[place + 1])
            near = rng.choice(own, min(size.detections // 2, 4 * len(own))) if len(own) else own
            found = np.concatenate(
                [
                    _near(rng, boxes[near]),
                    _boxes(rng, np.tile(sides[place], (size.detections - len(near), 1))),
                ]
            )
            names = np.concatenate(
                [category[near], rng.integers(0, size.categories, size.detections - len(near))]
            )
            scores = np.concatenate([rng.random(len(near)), 0.7 * rng.random(size.detections - len(near))])
            codes = _rectangles(found, sides[place]) if masks else None
            file.write(",\n" if place else "\n")
            file.write(_entries(place + 1, names + 1, scores, found, codes))
        file.write("\n]\n")


def _boxes(rng: np.random.Generator, sides: np.ndarray) -> np.ndarray:
    """Return (n, 4) xywh within frames of (n, 2) height and width; as many small ones as large ones."""
    extent = np.exp(rng.uniform(math.log(0.02), math.log(0.9), (len(sides), 2))) * sides[:, ::-1]
    corner = rng.random((len(sides), 2)) * (sides[:, ::-1] - extent)
    return np.concatenate([corner, extent], axis=1)


def _near(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    corner = np.abs(boxes[:, :2] + rng.normal(0, 0.1, (len(boxes), 2)) * boxes[:, 2:])
    return np.concatenate([corner, boxes[:, 2:] * np.exp(rng.normal(0, 0.15, (len(boxes), 2)))], axis=1)


def _entries(
    image: int, categories: np.ndarray, scores: np.ndarray, boxes: np.ndarray, codes: list[str] | None
) -> str:
    """Write numbers as they come from float32 tensors."""
    lines = []
    for place, (category, score, box) in enumerate(
        zip(categories.tolist(), scores.astype(np.float32).tolist(), boxes.astype(np.float32).tolist())
    ):
        shape = f'"bbox": {box}' if codes is None else f'"segmentation": {codes[place]}'
        lines.append(f'{{"image_id": {image}, "category_id": {category}, "score": {score!r}, {shape}}}')
    return ",\n".join(lines)


def _rectangles(boxes: np.ndarray, sides: np.ndarray) -> list[str]:
    from pycocotools import mask

    height, width = sides.tolist()
    codes = mask.frPyObjects(np.ascontiguousarray(boxes, dtype=np.float64), height, width)
    return [json.dumps({"size": [height, width], "counts": code["counts"].decode()}) for code in codes]


def _write_truth(
    path: Path,
    size: Size,
    rng: np.random.Generator,
    sides: np.ndarray,
    image: np.ndarray,
    category: np.ndarray,
    boxes: np.ndarray,
) -> None:
    angles = np.linspace(0, 2 * np.pi, _POLYGON, endpoint=False)
    circle = 0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    polygons = (boxes[:, None, :2] + circle * boxes[:, None, 2:]).reshape(len(boxes), -1).round(2)
    areas = boxes[:, 2] * boxes[:, 3] * np.pi / 4
    first = np.searchsorted(image, np.arange(size.images + 1))
    images: list[dict[str, Any]] = []
    for place, (height, width) in enumerate(sides.tolist()):
        images.append(
            {"id": place + 1, "height": height, "width": width, "file_name": f"{place + 1:012}.jpg"}
        )
        if size.federated:
            there = np.unique(category[first[place] : first[place + 1]]) + 1
            absent = np.setdiff1d(rng.integers(1, size.categories + 1, 12), there)
            images[-1] |= {
                "neg_category_ids": absent.tolist(),
                "not_exhaustive_category_ids": there[::9].tolist(),
            }
    names = [{"id": number + 1, "name": f"thing {number + 1}"} for number in range(size.categories)]
    if size.federated:
        for number, entry in enumerate(names):
            entry["frequency"] = "rcf"[number % 3]
    annotations = [
        {
            "id": n + 1,
            "image_id": i + 1,
            "category_id": c + 1,
            "bbox": b,
            "area": a,
            "segmentation": [p],
            "iscrowd": 0,
        }
        for n, (i, c, b, a, p) in enumerate(
            zip(image.tolist(), category.tolist(), boxes.round(2).tolist(), areas.tolist(), polygons.tolist())
        )
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))


def by_hotcoco(folder: Path, kind: str, federated: bool) -> dict[str, float]:
    """Evaluate as hotcoco's own documentation does, without a check of anything."""
    import hotcoco

    truth = hotcoco.COCO(str(folder / "truth.json"))
    load = hotcoco.LVISResults if federated else hotcoco.COCO.load_res
    found = load(truth, str(folder / "results.json"))
    evaluator = hotcoco.COCOeval(truth, found, kind, lvis_style=federated)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.run()
    return evaluator.get_results()


def by_cfmvit(folder: Path, kind: str, federated: bool) -> dict[str, float]:
    """Evaluate as ``cfmvit evaluate`` does."""
    from cfmvit.evaluation import evaluate_results

    style = "lvis" if federated else "coco"
    return evaluate_results(folder / "results.json", folder / "truth.json", style=style, iou_types=(kind,))[
        kind
    ]


WAYS: dict[str, Callable[[Path, str, bool], dict[str, float]]] = {"hotcoco": by_hotcoco, "cfmvit": by_cfmvit}
_SAME = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300", "AR100")


def measure(way: str, folder: Path, kind: str, federated: bool) -> dict[str, Any]:
    """Run one way in a process of its own; its imports are memory, but no time."""
    words = [
        sys.executable,
        "-m",
        "cfmvit.bench.evaluation",
        "--way",
        way,
        "--folder",
        str(folder),
        "--kind",
        kind,
    ]
    done = subprocess.run(
        [*words, "--set", "lvis" if federated else "coco"], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def _way(arguments: argparse.Namespace) -> None:
    way = WAYS[arguments.way]
    if arguments.way == "cfmvit":
        import cfmvit.evaluation  # noqa: F401
    else:
        import hotcoco  # noqa: F401
    start, busy = time.perf_counter(), time.process_time()
    figures = way(arguments.folder, arguments.kind, arguments.set == "lvis")
    seconds = time.perf_counter() - start
    cores = time.process_time() - busy
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "core_seconds": cores, "bytes": peak, "figures": figures}))


def main(argv: list[str] | None = None) -> None:
    """Make the data where it is not there yet, measure both ways in turn, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m cfmvit.bench.evaluation", description=__doc__)
    parser.add_argument("--set", choices=SIZES, default="lvis")
    parser.add_argument("--kind", choices=("bbox", "segm"), default="bbox")
    parser.add_argument(
        "--folder", type=Path, help="where the made data lie, and stay; default: a temporary one"
    )
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--images", type=int, help="fewer than the data set has")
    parser.add_argument("--way", choices=WAYS, help="run this one alone, here")
    parser.add_argument("--output", type=Path, help="JSON to write")
    arguments = parser.parse_args(argv)
    if arguments.way:
        return _way(arguments)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder /= f"{arguments.set}-{arguments.kind}-{arguments.images or 'all'}"
        size = SIZES[arguments.set]
        if arguments.images:
            share = arguments.images / size.images
            size = Size(
                arguments.images, size.categories, round(share * size.boxes), size.detections, size.federated
            )
        if not folder.exists():
            with atomic_dir(folder) as made:
                make(made, size, masks=arguments.kind == "segm")
        runs = [
            {way: measure(way, folder, arguments.kind, size.federated) for way in WAYS}
            for _ in range(arguments.repeat)
        ]
    print(_table(runs))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(runs, indent=2) + "\n")


def _table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "| run | hotcoco | cfmvit | times the time | times the memory | largest difference |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for number, run in enumerate(runs):
        own, ours = run["hotcoco"], run["cfmvit"]
        names = {**dict.fromkeys(_SAME), "AR@100": None}
        theirs = {name.replace("AR100", "AR@100"): value for name, value in own["figures"].items()}
        shared = [name for name in names if name in theirs and name in ours["figures"]]
        worst = max(abs(theirs[name] - ours["figures"][name]) for name in shared)
        shown = [f"{way['seconds']:.2f} s, {way['bytes'] / 1e9:.2f} GB" for way in (own, ours)]
        ratios = [f"{ours[key] / own[key]:.2f}" for key in ("seconds", "bytes")]
        lines.append(f"| {number + 1} | {' | '.join([*shown, *ratios])} | {worst:.1e} of {len(shared)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
