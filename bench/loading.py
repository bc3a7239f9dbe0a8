"""The loader beside decoding alone, and how long shards take to open: ``python -m cfmvit.bench.loading``.

Photographs are made, 640 x 480 pixels at JPEG's quality 90, unless ``--data`` names others. Opening is measured on a thousand and
a hundred thousand shards of ten thousand samples, which are links to one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np

from cfmvit.bench.machine import header
from cfmvit.data import SeededLoader, collate_captions, open_captions
from cfmvit.data.captions import CaptionDataset
from cfmvit.data.images import decode_rgb
from cfmvit.data.shard_index import make_index

_PROCESSES = 2
_BATCH, _BATCHES = 32, 32
_SIZE = 224
_LINKS = 50_000  # of one file, which file systems limit
_PER_SHARD = 10_000


def make_photographs(folder: Path, count: int) -> str:
    """Write shards of made photographs with captions; return what names them."""
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for number in range(count):
            file = io.BytesIO()
            photograph(rng).save(file, "JPEG", quality=90)
            _add(tar, f"{number:06}.jpg", file.getvalue())
            _add(tar, f"{number:06}.txt", b"a made photograph")
    return f"shards:{folder}"


def photograph(rng: np.random.Generator) -> Any:
    """Return a made photograph of 640 x 480 pixels, which is as hard to decode as a real one."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).resize((640, 480), 3)
    noisy = np.asarray(coarse).astype(np.int16) + rng.normal(0, 12, (480, 640, 1)).astype(np.int16)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def loading(spec: str, rounds: int) -> dict[str, Any]:
    """Return core-milliseconds an image of decoding alone, of decoding and cropping, and of the loader with two workers.

    They are of all processes, so that what else runs on the machine counts little. The shares are medians over rounds, in
    which each comes in turn: how many images a core loads, of those that it would decode.
    """
    data = open_captions(spec, image_size=_SIZE)
    ways: dict[str, Callable[[CaptionDataset], float]] = {
        "decode": partial(_in_two, _decode),
        "decode and crop": partial(_in_two, _load),
        "loader": _loaded,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(1000 * way(data) / (_BATCHES * _BATCH))
    return {
        "core_ms_an_image": {name: statistics.median(found) for name, found in times.items()},
        "loader_share": {
            name: statistics.median(a / b for a, b in zip(times[name], times["loader"], strict=True))
            for name in ("decode", "decode and crop")
        },
    }


def _in_two(work: Callable[[CaptionDataset, range], float], data: CaptionDataset) -> float:
    """Return the core-seconds of two processes that have half of the images each."""
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("fork")) as pool:
        halves = [range(first, _BATCHES * _BATCH, _PROCESSES) for first in range(_PROCESSES)]
        return sum(pool.map(work, [data] * _PROCESSES, halves))


def _decode(data: CaptionDataset, numbers: range) -> float:
    start = time.process_time()
    for number in numbers:
        pair = data._pairs.read(number % len(data))
        decode_rgb(pair.image, pair.key)
    return time.process_time() - start


def _load(data: CaptionDataset, numbers: range) -> float:
    start = time.process_time()
    for number in numbers:
        data.load(number % len(data), np.random.default_rng(number))
    return time.process_time() - start


def _loaded(data: CaptionDataset) -> float:
    """Between two moments at which the workers have nothing to do they make as many batches as are taken."""
    loader = SeededLoader(data, _BATCH, workers=_PROCESSES, collate=collate_captions, sizes=data.sizes)
    found = loader.iterate()
    next(found)
    start = _core_seconds_when_idle()
    for _ in range(_BATCHES):
        next(found)
    return _core_seconds_when_idle() - start


def _core_seconds_when_idle() -> float:
    """Wait until the workers have been idle for a second; return what they and this process have computed for."""
    seen, since = _children_seconds(), time.monotonic()
    while time.monotonic() - since < 1:
        time.sleep(0.1)
        if (now := _children_seconds()) != seen:
            seen, since = now, time.monotonic()
    return seen + time.process_time()


def _children_seconds() -> float:
    fields = [
        Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split() for child in active_children()
    ]
    return sum(int(found[11]) + int(found[12]) for found in fields) / os.sysconf("SC_CLK_TCK")


def make_shards(folder: Path, count: int) -> None:
    """Write ``count`` shards of ten thousand samples and their indexes, all links to a few."""
    first = folder / "first.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(_PER_SHARD):
            _add(tar, f"{number:06}.jpg", b"x")
            _add(tar, f"{number:06}.txt", b"a caption")
    index = Path(make_index(str(first)).place)
    for number in range(count):
        if number % _LINKS == 0:
            kept = [folder / f"copy-{number}{path.suffix}" for path in (first, index)]
            for path, copy in zip((first, index), kept, strict=True):
                shutil.copy2(path, copy)
        name = folder / f"train-{number:06}.tar"
        os.link(kept[0], name)
        os.link(kept[1], f"{name}{index.suffix}")


def opening(folder: Path) -> dict[str, Any]:
    """Return what opening shards and drawing the order of a batch take, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "cfmvit.bench.loading", "--open", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _open(folder: Path) -> dict[str, Any]:
    before = _resident()
    start = time.perf_counter()
    data = open_captions(f"shards:{folder}", image_size=_SIZE)
    opened = time.perf_counter() - start
    loader = SeededLoader(data, 16_384, collate=collate_captions, sizes=data.sizes)
    order = loader._batches._of_epoch(0)
    numbers = [order[place] for place in range(16_384)]
    ordered = time.perf_counter() - start - opened
    texts = len(data.texts(1000))
    added = _resident() - before
    assert len(set(numbers)) == len(numbers)
    assert texts == 1000
    return {
        "samples": len(data),
        "shards": len(data.sizes),
        "open_s": opened,
        "order_of_16384_s": ordered,
        "added_mb": added / 2**20,
        "with_imports_mb": (before + added) / 2**20,
    }


def _resident() -> int:
    """Return the bytes of memory that this process holds."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def main() -> None:
    """Measure and print, or write, the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="what to load, as data= takes it; default: 256 made photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, nargs="*", default=[1_000, 100_000], help="how many to open")
    parser.add_argument("--output", type=Path, help="json to write")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open is not None:
        print(json.dumps(_open(options.open)))
        return
    found: dict[str, Any] = {"machine": header("cpu"), "opening": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["loading"] = loading(options.data or make_photographs(folder, 256), options.rounds)
    for count in options.shards:
        with tempfile.TemporaryDirectory() as name:
            make_shards(Path(name), count)
            found["opening"].append(opening(Path(name)))
    text = json.dumps(found, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
