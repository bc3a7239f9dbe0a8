"""Checkpoints are written beside the training: it waits for a copy in memory, a thread brings that to the disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch import Tensor, nn

from cfmvit.training.checkpoint import checkpoint_path, checkpoints, keep_last, optimizer_state
from cfmvit.training.checkpoint_folder import State, write_state
from cfmvit.training.gradients import NonFiniteLossError
from cfmvit.training.sharding import gathered, is_sharded
from cfmvit.training.world import World


class Saving:
    """Saves a run's checkpoints, of which the two last are kept; the main process alone writes.

    A copy takes as much of the host's memory as weights and optimizer state together.
    """

    def __init__(
        self, output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World
    ) -> None:
        self._output, self._model, self._optimizer, self._world = output, model, optimizer, world
        self._copies: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int) -> None:
        """Copy what there is after ``step`` steps, and begin to write it once the checkpoint before is written.

        Raises:
            NonFiniteLossError, OSError: on every rank, where that could not be.
        """
        self.finish()
        state: State | None
        if is_sharded(self._model):  # rank by rank, with collectives in between
            with self._world.reaching():
                state = self._copied(step)
        else:
            with self._world.together():
                state = self._copied(step) if self._world.main else None
        if self._world.main and state is not None:
            self._writing = self._thread.submit(self._write, state)

    def finish(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            NonFiniteLossError, OSError: on every rank, where it can't be.
        """
        with self._world.together():
            self.check(wait_for_it=True)

    def check(self, *, wait_for_it: bool = False) -> None:
        """Raise, on the main process, what went wrong with a checkpoint that was being written."""
        if self._writing is not None and (wait_for_it or self._writing.done()):
            self._writing.result()

    def close(self) -> None:
        """Let the thread end with what it writes."""
        self._thread.shutdown()

    def kept(self) -> str:
        """Say which checkpoint a run leaves that stops now."""
        if self._writing is not None:
            wait([self._writing])
        return last_good(self._output)

    def _copied(self, step: int) -> State:
        model = self._copy("model", self._model.state_dict())
        optimizer = self._copy("optimizer", optimizer_state(self._model, self._optimizer))
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return State(step, model, optimizer, type(self._optimizer).__name__)

    def _copy(self, part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy into memory that is kept for the next time: to get it takes longer than to fill it.

        Of shards every rank gathers one tensor after another, and the main one alone copies.
        """
        copied = {}
        for name, part_or_whole in tensors.items():
            value = gathered(part_or_whole)
            if not self._world.main:
                continue
            place = self._copies.get(f"{part} {name}")
            if place is None:
                place = torch.empty_like(
                    value,
                    device="cpu",
                    memory_format=torch.contiguous_format,
                    pin_memory=value.device.type == "cuda",
                )
                self._copies[f"{part} {name}"] = place
            copied[name] = place.copy_(value, non_blocking=True)
        return copied

    def _write(self, state: State) -> None:
        """Write a checkpoint; one that holds a NaN or an infinity never replaces a good one."""
        learnt = dict(self._model.named_parameters()).keys()
        values = {name: value for name, value in state.model.items() if name in learnt}
        for name, value in {**values, **state.optimizer}.items():
            if not value.isfinite().all():
                what, _, of = name.rpartition("/")
                named = f"{what} of {of}" if what else name
                raise NonFiniteLossError(
                    f"{named} is not finite after step {state.step - 1}; {last_good(self._output)}"
                )
        try:
            write_state(checkpoint_path(self._output, state.step), state)
            keep_last(self._output, state.step)
        except OSError as error:
            raise OSError(f"{error}; {last_good(self._output)}") from error


def last_good(output: Path) -> str:
    """Say which checkpoint there is."""
    found = checkpoints(output)
    return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved yet"
