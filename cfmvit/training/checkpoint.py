"""Training state on disk: everything that a resumed run needs to go on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cfmvit._io import atomic_write

NAME = "checkpoint.pt"


def save_checkpoint(output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write ``checkpoint.pt``: weights, optimizer state and the number of finished steps."""
    with atomic_write(output / NAME) as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)


def load_checkpoint(output: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what ``save_checkpoint`` wrote and return the number of finished steps.

    Raises:
        FileNotFoundError: there is no checkpoint in ``output``.
        ValueError: the file is corrupt, or belongs to another model.
    """
    path = output / NAME
    if not path.is_file():
        raise FileNotFoundError(f"resume: no checkpoint at {path}")
    state = _read(path)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"resume: {path} belongs to another configuration: {error}") from error
    return state["step"]


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise ValueError(
            f"resume: {path} is not a readable checkpoint ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(state, dict) or not {"model", "optimizer", "step"} <= state.keys():
        raise ValueError(f"resume: {path} is not a training checkpoint")
    return state
