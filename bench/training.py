"""Steps of pretraining side by side, in one run: what masked features cost, what pieces cost, and how processes share a batch.

    python -m cfmvit.bench.training --output bench/results/training-cpu.json --into docs/scale.md

- step: CFM-ViT's beside the contrastive loss alone, and beside open_clip's own step of towers of the same size. All have the same
  images and captions of the full length, and AdamW.
- pieces: a batch in pieces that stays whole (cached gradients) beside the same pieces with a loss each, and beside one pass.
- processes: the same batch over 1, 2 and 4 processes; threads or GPUs are shared out among them.
- memory: the most that a process holds in a step of 4,096 pairs in pieces, PyTorch and its libraries included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as torch_processes
from torch import nn

from cfmvit.bench.machine import header
from cfmvit.bench.record import write
from cfmvit.bench.summary import put_between_marks
from cfmvit.bench.tables import duration, markdown
from cfmvit.bench.timing import interleaved, quantiles
from cfmvit.models import ModelConfig, create_model
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.training import World, join

MARK = "training"
PARTS = ("step", "pieces", "processes", "memory")
ALONE = {"reconstruction": "none", "contrastive_input": "full"}
# What is asked for: of contrastive-only, of plain accumulation, and bytes.
STEP_BAR, PIECES_BAR, MEMORY_BAR = 1.10, 1.4, 3e9


@dataclass(frozen=True)
class Size:
    """What is measured: the towers of ``step`` and their batch; those of the rest, their batch and its pieces."""

    towers: str
    pairs: int
    model: str
    batch: int
    pieces: int
    large: int  # the batch of ``memory``, in pieces as large as those of ``batch``


SIZES = {
    "tiny": Size("cfm_vit_tiny", 4, "cfm_vit_tiny", 8, 2, 16),
    "small": Size("cfm_vit_s16", 8, "cfm_vit_tiny", 256, 4, 4096),
    "large": Size("cfm_vit_b16", 256, "cfm_vit_b16", 1024, 4, 4096),
}


class Training:
    """A model with AdamW, and the steps that it can take."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.model, self.device, self.low = model.to(device).train(), device, precision == "bf16"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(self, gradients: Callable[[], None]) -> None:
        """Take one step with the gradients that a call leaves."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def pairs(config: ModelConfig, count: int, device: torch.device) -> dict[str, Any]:
    """Return a batch of noise, with captions of the full length."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (count, 3, config.image_size, config.image_size), generator=generator, dtype=torch.uint8
    )
    ids = torch.randint(1, 1000, (count, config.context_length), generator=generator)
    return {"images": images.to(device), "texts": ids.to(device), "keys": list(range(count))}


def ours(name: str, count: int, world: World, precision: str, **options: str) -> Callable[[], None]:
    """Return the step of a CFM-ViT over one batch."""
    model = create_model(name, **options)
    training = Training(model, world.device, precision)
    gradients, batch = ContrastiveGradients(model, world, 2.0), pairs(model.config, count, world.device)
    generator = torch.Generator(world.device).manual_seed(0)
    return lambda: training.step(lambda: gradients([batch], generator) and None)


def open_clips(config: ModelConfig, count: int, device: torch.device, precision: str) -> Callable[[], None]:
    """Return the step of open_clip's own model and loss, of towers of the same size.

    Raises:
        ImportError: open_clip is not here.
    """
    import open_clip

    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layers": config.depth,
        "width": config.width,
        "head_width": config.width // config.heads,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_depth,
    }
    model = open_clip.model.CLIP(embed_dim=config.width, vision_cfg=vision, text_cfg=text)
    training, loss = Training(model, device, precision), open_clip.ClipLoss()
    batch = pairs(config, count, device)

    def gradients() -> None:
        loss(*model(batch["images"].float() / 255, batch["texts"])).backward()

    return lambda: training.step(gradients)


def steps(size: Size, device: torch.device, precision: str, seconds: float) -> dict[str, Any]:
    """Time the three steps in turns."""
    world = World(device)
    runs = {
        "CFM-ViT": ours(size.towers, size.pairs, world, precision),
        "contrastive": ours(size.towers, size.pairs, world, precision, **ALONE),
    }
    config = create_model(size.towers).config
    found: dict[str, Any] = {"model": size.towers, "batch": size.pairs, "precision": precision}
    try:
        runs["open_clip"] = open_clips(config, size.pairs, device, precision)
    except ImportError as error:
        found["skipped"] = str(error)
    return found | _compared(runs, "CFM-ViT", device, seconds)


def pieces(size: Size, device: torch.device, precision: str, seconds: float) -> dict[str, Any]:
    """Time a batch that stays whole in pieces, the same pieces with a loss each, and the batch in one pass."""
    model = create_model(size.model)
    training, world = Training(model, device, precision), World(device)
    whole, count = pairs(model.config, size.batch, device), size.batch // size.pieces
    parts = [
        {name: values[start : start + count] for name, values in whole.items()}
        for start in range(0, size.batch, count)
    ]
    gradients, generator = ContrastiveGradients(model, world, 2.0), torch.Generator(device).manual_seed(0)

    def plain() -> None:
        for part in parts:
            gradients([part], generator)

    runs = {
        "cached": lambda: training.step(lambda: gradients(parts, generator) and None),
        "plain": lambda: training.step(plain),
        "one pass": lambda: training.step(lambda: gradients([whole], generator) and None),
    }
    found = {"model": size.model, "batch": size.batch, "pieces": size.pieces, "precision": precision}
    return found | _compared(runs, "cached", device, seconds)


def _compared(
    runs: dict[str, Callable[[], None]], first: str, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Return the seconds of each, and the ``first``'s ratio to the others', the median of the rounds'."""
    times = interleaved(runs, device.type, seconds, cold=False)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[first], others))
        for name, others in times.items()
        if name != first
    }
    return {"seconds": {name: quantiles(found) for name, found in times.items()}, "ratios": ratios}


def processes(size: Size, device: torch.device, precision: str, seconds: float) -> dict[str, Any]:
    """Time the same batch over 1, 2 and 4 processes; on GPUs as many as there are."""
    counts = [n for n in (1, 2, 4) if device.type == "cpu" or n <= torch.cuda.device_count()]
    found = {}
    for count in counts:
        threads = max(1, torch.get_num_threads() // count)
        with tempfile.TemporaryDirectory() as folder:
            torch_processes.start_processes(
                _rank,
                (count, folder, size, device.type, precision, seconds, threads),
                count,
                start_method="spawn",
            )
            spent = json.loads((Path(folder) / "seconds.json").read_text())
        found[str(count)] = {
            "threads": threads,
            "seconds": quantiles(spent),
            "images_per_s": size.batch / statistics.median(spent),
        }
    return {"model": size.model, "batch": size.batch, "precision": precision, "of": found}


def _rank(
    rank: int, count: int, folder: str, size: Size, device: str, precision: str, seconds: float, threads: int
) -> None:
    torch.set_num_threads(threads)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    if count > 1:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=120),
        )
    with join(device) as world:
        step = ours(size.model, size.batch // count, world, precision)
        spent: list[float] = []
        end = None
        while end is None or world.most(int(time.perf_counter() < end)):
            world.most(0)
            begin = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - begin)
            end = end or time.perf_counter() + seconds  # the first one warms up
        if world.main:
            (Path(folder) / "seconds.json").write_text(json.dumps(spent[1:] or spent))


def memory(size: Size, device: torch.device, precision: str, seconds: float) -> dict[str, Any]:
    """Measure a step of a large batch in pieces, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_large, size, device, precision, torch.get_num_threads()).result()


def _large(size: Size, device: torch.device, precision: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    model = create_model(size.model)
    training = Training(model, device, precision)
    whole, count = pairs(model.config, size.large, device), size.batch // size.pieces
    parts = [
        {name: values[start : start + count] for name, values in whole.items()}
        for start in range(0, size.large, count)
    ]
    gradients = ContrastiveGradients(model, World(device), 2.0)
    begin = time.perf_counter()
    training.step(lambda: gradients(parts, torch.Generator(device)) and None)
    spent = time.perf_counter() - begin
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated()
    else:
        held = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "model": size.model,
        "batch": size.large,
        "pieces": len(parts),
        "precision": precision,
        "seconds": spent,
        "bytes": held,
    }


RUNS = {"step": steps, "pieces": pieces, "processes": processes, "memory": memory}


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
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default: %(default)s")
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
        if arguments.output is not None:
            write(arguments.output, record)
        print(json.dumps(record))
    if arguments.into is not None:
        put_between_marks(arguments.into, page(record), MARK)


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    size = SIZES[arguments.size or ("small" if device.type == "cpu" else "large")]
    results: dict[str, list[dict[str, Any]]] = {}
    precisions = arguments.precision.split(",")
    for part in arguments.parts.split(","):
        for precision in precisions if part in ("step", "pieces") else precisions[-1:]:
            results.setdefault(part, []).append(RUNS[part](size, device, precision, arguments.seconds))
    return {"machine": header(device.type), "results": results}


if __name__ == "__main__":
    main()
