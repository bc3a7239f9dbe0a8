"""What a run does before its first step: it takes its folder, or goes on in it, and writes its configuration."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cfmvit._io import atomic_write, clean, parse_json
from cfmvit.training.checkpoint import NAME, PREVIOUS, load_checkpoint
from cfmvit.training.config import save_config
from cfmvit.training.gradients import check_parts
from cfmvit.training.optim import warmup_within
from cfmvit.training.precision import with_precision
from cfmvit.training.world import World

Config = TypeVar("Config", bound=Any)

CONFIG = "config.json"
_DATA = "data.txt"
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
}
_LOCKS: set[int] = set()  # descriptors of this process


def _let_go() -> None:
    """Close a forked worker's copies: it outlives a killed run by seconds, and would keep the folder from the next one."""
    for lock in _LOCKS:
        os.close(lock)
    _LOCKS.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def run_folder(output: Path, world: World, *, resume: bool, overwrite: bool, product: str) -> Iterator[None]:
    """Have a run's folder for oneself; what a killed run left half-written in it is removed.

    Args:
        world: whose main process takes the folder for all.
        product: name of the folder in it that a finished run leaves.

    Raises:
        FileExistsError: there is a run in it, begun or finished, and neither ``resume`` nor ``overwrite``.
        RuntimeError: another process is running in it.
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
    lock = os.open(
        output, os.O_RDONLY
    )  # the folder itself: no file is left, and a killed process leaves no lock
    _LOCKS.add(lock)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"run: another process is running in {output}; --output names another folder"
            ) from None
        held = [name for name in (NAME, PREVIOUS, product) if (output / name).exists()]
        if held and not (resume or overwrite):
            goes_on = "--resume goes on with it, " if NAME in held else ""
            raise FileExistsError(
                f"run: {output} already holds a run ({' and '.join(held)}); {goes_on}--overwrite "
                "replaces it, --output names another folder"
            )
        clean(output)
        yield
    except BaseException:
        if new and not any(output.iterdir()):
            output.rmdir()
        raise
    finally:
        _LOCKS.discard(lock)
        os.close(lock)


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
        ValueError: ``resume`` with another configuration than the run was started with, with other data, with fewer steps
            than are done, or from a damaged checkpoint.
    """
    with world.together():
        start = _resumed(config, output, model, optimizer, data) if resume else 0
    with world.together():
        if world.main:
            if not resume and (output / NAME).exists():
                os.replace(output / NAME, output / PREVIOUS)
            save_config(config, output / CONFIG)
            with atomic_write(output / _DATA, "w") as file:
                file.write(data + "\n")
    return start


def _resumed(config: Any, output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, data: str) -> int:
    """Load the checkpoint of a run that goes on; return its step."""
    if (output / NAME).is_file() and (output / CONFIG).is_file():
        _check_same(config, output / CONFIG)
    start = load_checkpoint(output, model, optimizer)
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
