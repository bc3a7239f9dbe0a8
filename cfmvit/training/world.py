"""The processes of a run: which device each has, who writes, what they tell each other, and which of them is missing."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from cfmvit.ops.contrastive.collectives import host_group
from cfmvit.training.device import choose_device

Value = TypeVar("Value")

_PATIENCE = 5.0  # seconds


class World:
    """The processes ("ranks") that train one model together; alone by default.

    Attributes:
        rank, size: this process among how many.
        device: where this process computes.
        group: the process group that tensors travel in; None alone.
        doing: what the ranks are at, for messages.
    """

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self.device, self.group, self.doing = device, group, "the start"
        self.rank, self.size = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
        # Words travel by the CPU: they wait for no GPU, and a rank that does not answer is an error and no abort.
        self._words = None if group is None else host_group(group)

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return this rank's rows of what all ranks hold alike, (size * n, ...) -> (n, ...)."""
        return rows.chunk(self.size)[self.rank]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over ranks, on the CPU; no gradient."""
        values = values.detach().double().cpu()
        if self.size > 1:
            with self.reaching():
                dist.all_reduce(values, group=self._words)
        return values / self.size

    def mean_count(self, count: float) -> float:
        """Return the mean of the ranks' counts, at least a small one to divide by.

        A sum over the samples of a rank divided by it gives means over ranks that are the mean over all samples.
        """
        return max(float(self.mean(torch.tensor(float(count)))), 1.0 / self.size)

    def gather(self, value: Value) -> list[Value]:
        """Return what every rank gives, by rank."""
        if self.size == 1:
            return [value]
        told: list[Any] = [None] * self.size
        with self.reaching():
            dist.all_gather_object(told, value, group=self._words)
        return told

    def most(self, value: int) -> int:
        """Return the largest of the ranks' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device="cpu")
        with self.reaching():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self._words)
        return int(found)

    def from_main(self, make: Callable[[], Value]) -> Value:
        """Call ``make`` on the main process alone and return what it gives on every rank; what it raises is raised on all."""
        made: list[Any] = [None]
        with self.together():
            if self.main:
                made[0] = make()
        if self.size > 1:
            with self.reaching():
                dist.broadcast_object_list(made, group_src=0, group=self._words, device=torch.device("cpu"))
        return made[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block without collectives; where it fails on any rank, every rank raises, and names that rank."""
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.raise_any(error)

    def raise_any(self, error: Exception | None) -> None:
        """Raise the error of this rank, or else that of another."""
        if self.most(int(error is not None)) == 0:
            return
        if self.size == 1:
            assert error is not None
            raise error
        mine = None if error is None else (type(error), str(error))
        told = self.gather(mine)
        rank, (kind, text) = next((rank, words) for rank, words in enumerate(told) if words is not None)
        if error is not None and all(words == mine for words in told):
            raise error
        raise _again(kind, f"rank {rank}: {text}") from error

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Run a block of exchanges; where the others can't be reached in it, raise ``MissingRankError``, which names them."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_lost(error):
                raise
            raise MissingRankError(
                f"{self._missing()} at {self.doing}: {str(error).splitlines()[0]}"
            ) from error

    def _missing(self) -> str:
        """Name the ranks that do not notice within seconds that something is lost: they hang, or are gone."""
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"cfmvit/lost/{self.rank}", "")
            silent, end = list(range(self.size)), time.monotonic() + _PATIENCE
            while silent and time.monotonic() < end:
                time.sleep(0.1)
                silent = [rank for rank in silent if not store.check([f"cfmvit/lost/{rank}"])]
        except RuntimeError:  # the store was in a process that is gone
            return "the process that the others met in is gone, or did not answer"
        names = ", ".join(f"rank {rank}" for rank in silent) or "a rank"
        return f"{names} of {self.size} did not answer"


class MissingRankError(RuntimeError):
    """A rank hangs, or its process is gone."""


@contextmanager
def join(device: str = "auto", limit: float = 600.0) -> Iterator[World]:
    """Join the processes that ``torchrun`` has started, with a device each; without it, be alone.

    Ranks other than 0 print nothing on stdout, and no warnings of what all of them see (``quiet``).

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; alone also ``cuda:N``.
        limit: seconds to wait for other ranks, at the start and in every exchange.

    Raises:
        ValueError: no such device, or fewer GPUs than processes on this machine.
        RuntimeError: WORLD_SIZE says that there are others, and they can't be met.
    """
    size = _number("WORLD_SIZE", 1)
    if not dist.is_available() or (size == 1 and not dist.is_initialized()):
        yield World(choose_device(device))
        return
    own = _device(device)
    begun = not dist.is_initialized()
    if begun:
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=timedelta(seconds=limit)
            )
        except (ValueError, RuntimeError) as error:
            raise RuntimeError(
                f"run: WORLD_SIZE is {size}, but its processes can't meet: {error}; torchrun starts them, "
                "without WORLD_SIZE one process trains alone"
            ) from error
    try:
        world = World(own, dist.group.WORLD)
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if world.main else nowhere):
            yield world
    finally:
        if begun:
            dist.destroy_process_group()


@contextmanager
def quiet(world: World) -> Iterator[None]:
    """Let the main process alone warn of what every rank sees alike."""
    logger = logging.getLogger("cfmvit")
    before = logger.level
    if not world.main:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_lost(error: RuntimeError) -> bool:
    """Tell whether an error is of ranks that can't reach each other; torch raises some of them as plain RuntimeErrors."""
    plain = type(error) is RuntimeError and not hasattr(error, "rank")
    return isinstance(error, dist.DistError) or (
        plain and any(word in str(error) for word in ("gloo", "NCCL", "imed out"))
    )


def _device(name: str) -> torch.device:
    """Return the device of this rank: of a machine's GPUs the one with its local number."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"config: device must be auto, cpu or cuda with several processes, got {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = choose_device(f"cuda:{_number('LOCAL_RANK', 0)}")
    torch.cuda.set_device(device)
    return device


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise ValueError(f"run: {name} must be a number, got {text!r}")
    return int(text) if text else otherwise


def _again(kind: type[Exception], text: str) -> Exception:
    """Make an error of another process's kind, with that one's text; it is marked as a rank's own, as none that is lost."""
    again: Exception = kind.__new__(kind, text)
    again.args = (text,)
    again.__dict__["rank"] = True
    return again
