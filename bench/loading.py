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
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from cfmvit.bench.machine import header
from cfmvit.data import SeededLoader, collate_captions, open_captions
from cfmvit.data.captions import CaptionDataset
from cfmvit.data.images import decode_rgb
from cfmvit.data.shard_index import make_index

_PROCESSES = 2
_BATCH = 32
_SIZE = 224
_LINKS = 50_000  # of one file, which file systems limit
_PER_SHARD = 10_000


def make_photographs(folder: Path, count: int) -> str:
    """Write shards of made photographs with captions; return what names them."""
    from PIL import Image

    rng = np.random.default_rng(0)
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).resize((640, 480), 3)
            noisy = np.asarray(coarse).astype(np.int16) + rng.normal(0, 12, (480, 640, 1)).astype(np.int16)
            file = io.BytesIO()
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            _add(tar, f"{number:06}.jpg", file.getvalue())
            _add(tar, f"{number:06}.txt", b"a made photograph")
    return f"shards:{folder}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def loading(spec: str, rounds: int) -> dict[str, Any]:
    """Return images/s of two processes: decoding alone, decoding and cropping, and the loader with two workers.

    The ratios are medians over rounds, in which each comes in turn.
    """
    data = open_captions(spec, image_size=_SIZE)
    batches = max(8, len(data) // _BATCH)
    ways: dict[str, Callable[[], float]] = {
        "decode": lambda: _in_two(_decode, data, batches),
        "decode and crop": lambda: _in_two(_load, data, batches),
        "loader": lambda: _loaded(data, batches),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(batches * _BATCH / way())
    return {
        "images_per_s": {name: statistics.median(found) for name, found in rates.items()},
        "loader_over": {
            name: statistics.median(a / b for a, b in zip(rates["loader"], rates[name], strict=True))
            for name in ("decode", "decode and crop")
        },
    }


def _in_two(work: Callable[[CaptionDataset, range], None], data: CaptionDataset, batches: int) -> float:
    """Return the seconds that two processes take for half of the batches each."""
    count = batches * _BATCH
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("fork")) as pool:
        list(pool.map(work, [data] * _PROCESSES, [range(1)] * _PROCESSES))
        start = time.perf_counter()
        halves = [range(first, count, _PROCESSES) for first in range(_PROCESSES)]
        list(pool.map(work, [data] * _PROCESSES, halves))
        return time.perf_counter() - start


def _decode(data: CaptionDataset, numbers: range) -> None:
    for number in numbers:
        pair = data._pairs.read(number % len(data))
        decode_rgb(pair.image, pair.key)


def _load(data: CaptionDataset, numbers: range) -> None:
    for number in numbers:
        data.load(number % len(data), np.random.default_rng(number))


def _loaded(data: CaptionDataset, batches: int) -> float:
    loader = SeededLoader(data, _BATCH, workers=_PROCESSES, collate=collate_captions, sizes=data.sizes)
    found = loader.iterate()
    next(found)  # by when workers have begun on four more
    start = time.perf_counter()
    for _ in range(batches):
        next(found)
    return time.perf_counter() - start


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
    parser.add_argument("--data", help="what to load, as data= takes it; default: 512 made photographs")
    parser.add_argument("--rounds", type=int, default=5)
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
        found["loading"] = loading(options.data or make_photographs(folder, 512), options.rounds)
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
