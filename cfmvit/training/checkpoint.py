"""Training state in a run's folder: the newest checkpoint that is whole is what a resumed run goes on from, bit for bit."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from cfmvit.training.checkpoint_folder import DamagedError, State, check_state, read_state
from cfmvit.training.sharding import sharded_like

FOLDER = "checkpoints"
PREVIOUS = "checkpoints.previous"  # of a run that is being overwritten, until that has one of its own
_KEPT = 2

_LOG = logging.getLogger(__name__)


def checkpoint_path(output: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` steps lies."""
    return output / FOLDER / f"{step:08d}"


def checkpoints(output: Path) -> list[Path]:
    """Return a run's checkpoints, the oldest first; there is none that is not whole, unless it was damaged later."""
    folder = output / FOLDER
    found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def keep_last(output: Path, step: int) -> None:
    """Remove what the checkpoint after ``step`` steps, just written, replaces.

    That is all but the last two; and later ones, of a run that went on from an earlier one because they were damaged; and those
    of an overwritten run.
    """
    found = checkpoints(output)
    until = [path for path in found if int(path.name) <= step]
    for path in set(found) - set(until[-_KEPT:]):
        shutil.rmtree(path)
    if (output / PREVIOUS).exists():
        shutil.rmtree(output / PREVIOUS)


def last_whole(output: Path) -> Path:
    """Return the newest checkpoint that is as it was written; of each that is not a warning names the file.

    Raises:
        FileNotFoundError: there is no checkpoint in ``output``.
        ValueError: all are damaged.
    """
    found, damages = checkpoints(output), []
    for path in reversed(found):
        try:
            check_state(path)
        except DamagedError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            _LOG.warning("resume: %s; the run goes on from %s, the one before", damage, path)
        return path
    if damages:
        raise ValueError(f"resume: {'; '.join(damages)}; no checkpoint is left to go on from")
    kept = output / PREVIOUS
    hint = f"; {kept} is that of the run before, to go on with it rename it" if kept.is_dir() else ""
    raise FileNotFoundError(f"resume: no checkpoint at {output / FOLDER}{hint}")


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore a checkpoint, which ``last_whole`` returned, and return the number of finished steps.

    Raises:
        ValueError: it belongs to another model or optimizer.
    """
    state = read_state(path)
    try:
        own = model.state_dict()
        model.load_state_dict(
            {
                name: sharded_like(value, own[name]) if name in own else value
                for name, value in state.model.items()
            }
        )
        _restore(optimizer, dict(_parameters(model, optimizer)), state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"resume: {path} belongs to another configuration: {error}") from error
    return state.step


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's tensors by ``what/parameter``."""
    return {
        f"{what}/{name}": value
        for name, weight in _parameters(model, optimizer)
        for what, value in optimizer.state.get(weight, {}).items()
        if value is not None
    }


def _parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """Return what an optimizer changes, in its order, by the model's names."""
    names = {weight: name for name, weight in model.named_parameters()}
    return [(names[weight], weight) for group in optimizer.param_groups for weight in group["params"]]


def _restore(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], state: State) -> None:
    kind = type(optimizer).__name__
    if state.kind != kind:
        raise ValueError(f"the optimizer must be {kind}, got {state.kind}")
    places = {name: place for place, name in enumerate(parameters)}
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in state.optimizer.items():
        what, _, name = key.partition("/")
        if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
            raise ValueError(f"the optimizer has no {what} of the shape {tuple(value.shape)} for {name!r}")
        # Read tensors lie in the file's memory map.
        found.setdefault(places[name], {})[what] = sharded_like(value.clone(), parameters[name])
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
