"""A step of pretraining in processes of its own: a batch over several of them, and the memory that a large one takes."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as torch_processes

from cfmvit.bench.resident import resident_bytes
from cfmvit.bench.timing import quantiles
from cfmvit.bench.training_steps import Size, Training, ours, pairs
from cfmvit.models import create_model
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.training import World, join


def processes(size: Size, device: torch.device, precision: str, seconds: float) -> dict[str, Any]:
    """Time the same batch over 1, 2 and 4 processes; on GPUs as many as there are."""
    counts = [n for n in (1, 2, 4) if device.type == "cpu" or n <= torch.cuda.device_count()]
    found = {}
    for count in counts:
        threads = max(1, torch.get_num_threads() // count)
        with tempfile.TemporaryDirectory() as folder:
            torch_processes.start_processes(  # type: ignore[attr-defined]
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
        held = resident_bytes("VmHWM")
    return {
        "model": size.model,
        "batch": size.large,
        "pieces": len(parts),
        "precision": precision,
        "seconds": spent,
        "bytes": held,
    }
