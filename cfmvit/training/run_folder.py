"""What a run does before its first step: it takes its folder, or goes on in it, and writes its configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cfmvit.training.checkpoint import NAME, load_checkpoint
from cfmvit.training.config import save_config

CONFIG = "config.json"
# What a resumed run may change and still go on exactly; the schedule follows the number of steps.
_FREE = {"device", "workers", "loop.steps", "loop.log_every", "loop.save_every"}


def start_run(
    config: Any, output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, resume: bool
) -> int:
    """Return the step to start from, 0 or that of the checkpoint, which is loaded; then write ``config.json``.

    A new run removes the checkpoint of an old one before it writes anything, so that no later ``resume`` finds it. A
    refused ``resume`` changes no file.

    Raises:
        FileNotFoundError: ``resume`` without a checkpoint.
        ValueError: ``resume`` with another configuration than the run was started with, with fewer steps than are
            done, or from a damaged checkpoint.
    """
    start = 0
    if resume:
        if (output / NAME).is_file() and (output / CONFIG).is_file():
            _check_same(config, output / CONFIG)
        start = load_checkpoint(output, model, optimizer)
        if start > config.loop.steps:
            raise ValueError(
                f"resume: loop.steps must be at least the {start} steps that are done, got {config.loop.steps}"
            )
    else:
        output.mkdir(parents=True, exist_ok=True)
        (output / NAME).unlink(missing_ok=True)
    save_config(config, output / CONFIG)
    return start


def _check_same(config: Any, path: Path) -> None:
    try:
        saved = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"resume: {path} can't be read: {error}") from error
    given = _flat(json.loads(json.dumps(asdict(config))))
    for key in sorted((saved.keys() | given.keys()) - _FREE):
        if saved.get(key) != given.get(key):
            raise ValueError(
                f"resume: {key} must stay {saved.get(key)!r} as in {path}, got {given.get(key)!r}; "
                f"only {', '.join(sorted(_FREE))} may change"
            )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        values.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return values
