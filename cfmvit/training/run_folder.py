"""What a run does before its first step: it takes its folder, or goes on in it, and writes its configuration."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cfmvit._io import atomic_write, clean, parse_json
from cfmvit._lock import HeldError, held
from cfmvit.training.checkpoint import FOLDER, PREVIOUS, checkpoints, last_whole, load_checkpoint
from cfmvit.training.config import save_config
from cfmvit.training.gradients import check_parts
from cfmvit.training.optim import warmup_within
from cfmvit.training.precision import with_precision
from cfmvit.training.world import World

Config = TypeVar("Config", bound=Any)

CONFIG = "config.json"
_DATA = "data.txt"
_LOCK = ".run.lock"
# What a resumed run may change and still go on exactly; the schedule follows the number of steps.
_FREE = {
    "checkpoint_activations",
    "device",
    "device_tflops",
    "eval_data",
    "eval_every",
    "eval_images",
    "workers",
    "loop.steps",
    "loop.log_every",
    "loop.save_every",
    "loop.timeout",
    "max_skipped",
    "sharding",
}


@contextmanager
def run_folder(output: Path, world: World, *, resume: bool, overwrite: bool, product: str) -> Iterator[None]:
    """Have a run's folder for oneself; what a killed run left half-written in it is removed.

    Args:
        world: whose main process takes the folder for all.
        product: name of the folder in it that a finished run leaves.

    Raises:
        FileExistsError: there is a run in it, begun or finished, and neither ``resume`` nor ``overwrite``.
        RuntimeError: another process is running in it; the message says which, on which machine.
    """
    with ExitStack() as taken:
        with world.together():
            if world.main:
                taken.enter_context(_taken(output, resume, overwrite, product))
        yield


@contextmanager
def _taken(output: Path, resume: bool, overwrite: bool, product: str) -> Iterator[None]:
    new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with held(output / _LOCK):
            begun = [name for name in (PREVIOUS, product) if (output / name).exists()]
            if goes_on := bool(checkpoints(output)):
                begun.insert(0, FOLDER)
            if begun and not (resume or overwrite):
                raise FileExistsError(
                    f"run: {output} already holds a run ({' and '.join(begun)}); "
                    f"{'--resume goes on with it, ' * goes_on}--overwrite replaces it, --output names another folder"
                )
            clean(output)
            if (output / FOLDER).is_dir():
                clean(output / FOLDER)
            yield
    except HeldError as holder:
        raise RuntimeError(f"run: {holder} is running in {output}; --output names another folder") from None
    finally:
        if new:
            with suppress(OSError):  # it holds something
                output.rmdir()


def settled(config: Config, output: Path, world: World, *, resume: bool) -> Config:
    """Return a run's configuration as it is carried out, and seed torch: the precision is chosen, the warm-up ends within it.

    Raises:
        ValueError: the batch does not divide into equal parts.
    """
    config = _with_warmup(config, output, resume=resume)
    check_parts(config.batch_size, config.loop.accumulate, world)
    torch.manual_seed(config.loop.seed)
    return replace(config, loop=with_precision(config.loop, world.device))


def _with_warmup(config: Config, output: Path, *, resume: bool) -> Config:
    """Return a run's configuration with a warm-up that ends within it; a resumed run keeps the one that it began with."""
    saved = output / CONFIG
    if resume and saved.is_file() and _saved(saved).get("optim.warmup") == config.optim.warmup:
        return config
    warmup = warmup_within(config.optim.warmup, config.loop.steps)
    return replace(config, optim=replace(config.optim, warmup=warmup))


def start_run(
    config: Any,
    output: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: str,
    world: World,
    *,
    resume: bool,
) -> int:
    """Return the step to start from, 0 or that of the checkpoint, which is loaded; then write ``config.json``.

    A new run puts the checkpoint of an old one aside before it writes anything, so that no later ``resume`` finds it; it is
    removed when the new run has one of its own. A refused ``resume`` changes no file.

    Args:
        data: fingerprint of the training data.
        world: all of whose processes read the checkpoint, and whose main one writes.

    Raises:
        FileNotFoundError: ``resume`` without a checkpoint.
        ValueError: processes that see other data; ``resume`` with another configuration than the run was started with, with
            other data, with fewer steps than are done, or from a damaged checkpoint.
    """
    check_same_data(data, world)
    start = _resumed(config, output, model, optimizer, data, world) if resume else 0
    with world.together():
        if world.main:
            if not resume and checkpoints(output):
                shutil.rmtree(output / PREVIOUS, ignore_errors=True)
                os.replace(output / FOLDER, output / PREVIOUS)
            save_config(config, output / CONFIG)
            with atomic_write(output / _DATA, "w") as file:
                file.write(data + "\n")
    return start


def check_same_data(data: str, world: World) -> None:
    """Refuse processes that see different data, such as a folder that is not the same on every machine.

    Args:
        data: fingerprint of what this process sees.

    Raises:
        ValueError: on every rank, naming the first that differs from rank 0.
    """
    told = world.gather(data)
    for rank, other in enumerate(told):
        if other != told[0]:
            raise ValueError(
                f"data: all processes must see the same, got {told[0]} on rank 0 and {other} on rank {rank}"
            )


def _resumed(
    config: Any,
    output: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: str,
    world: World,
) -> int:
    """Load the newest whole checkpoint of a run that goes on; return its step."""
    with world.together():
        if checkpoints(output) and (output / CONFIG).is_file():
            _check_same(config, output / CONFIG)
    last = world.from_main(lambda: last_whole(output))
    start = 0
    with world.together():
        start = load_checkpoint(last, model, optimizer)
        if start > config.loop.steps:
            raise ValueError(
                f"resume: loop.steps must be at least the {start} steps that are done, got {config.loop.steps}"
            )
        before = _text(output / _DATA)
        if before not in ("", data):
            raise ValueError(f"resume: the data must stay as they were: {before}, got {data}")
    return start


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _check_same(config: Any, path: Path) -> None:
    saved = _saved(path)
    given = _flat(json.loads(json.dumps(asdict(config))))
    for key in sorted((saved.keys() | given.keys()) - _FREE):
        if saved.get(key) != given.get(key):
            raise ValueError(
                f"resume: {key} must stay {saved.get(key)!r} as in {path}, got {given.get(key)!r}; "
                f"only {', '.join(sorted(_FREE))} may change"
            )


def _saved(path: Path) -> dict[str, Any]:
    try:
        return _flat(parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"resume: {path} can't be read: {error}") from error


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        values.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return values
