"""The first thing that a run writes: its configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cfmvit.training.checkpoint import NAME
from cfmvit.training.config import save_config

CONFIG = "config.json"
# What a resumed run may change and still go on exactly; the schedule follows the number of steps.
_FREE = {"data", "device", "workers", "loop.steps", "loop.log_every", "loop.save_every"}


def start_run(config: Any, output: Path, *, resume: bool) -> None:
    """Write ``config.json``; a new run removes the checkpoint of an old one, so that no later ``resume`` finds it.

    Raises:
        FileNotFoundError: ``resume`` without a checkpoint.
        ValueError: ``resume`` with another configuration than the run was started with.
    """
    checkpoint = output / NAME
    if not resume:
        output.mkdir(parents=True, exist_ok=True)
        checkpoint.unlink(missing_ok=True)
    elif not checkpoint.is_file():
        raise FileNotFoundError(f"resume: no checkpoint at {checkpoint}")
    elif (output / CONFIG).is_file():
        _check_same(config, output / CONFIG)
    save_config(config, output / CONFIG)


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
