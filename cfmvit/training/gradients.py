"""How a step gets its gradients: the losses of its micro-batches, checked on every rank before any is followed back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cfmvit.training.world import World

Batch = dict[str, Any]
Values = dict[str, Tensor]


class NonFiniteLossError(FloatingPointError):
    """A loss, a gradient or a weight became NaN or infinite; the last good checkpoint is untouched."""


class Gradients(Protocol):
    """Turns the micro-batches of a step into gradients."""

    def __call__(self, batches: list[Batch], generator: torch.Generator) -> Values:
        """Leave the gradient of the whole batch, of all ranks, on the parameters.

        Args:
            batches: this rank's part of the batch, in equal parts; with ``keys`` to name its samples by.
            generator: seeded by the step alike on every rank; all random draws come from it.

        Returns:
            0-d losses of this rank's part; ``"loss"`` is what was minimised.

        Raises:
            NonFiniteLossError: on every rank, where a loss is not finite on any.
        """
        ...


class MeanGradients:
    """The mean of the micro-batches' gradients: each has a loss of its own, which depends on no other.

    Args:
        losses: maps a batch and a generator for each of its samples to named losses.
    """

    def __init__(self, losses: Callable[[Batch, list[torch.Generator]], Values], world: World) -> None:
        self._losses, self._world = losses, world

    def __call__(self, batches: list[Batch], generator: torch.Generator) -> Values:
        """See ``Gradients``."""
        totals: Values = {}
        size = len(batches[0]["keys"])
        generators = _per_sample(generator, size * len(batches), self._world)
        for number, batch in enumerate(batches):
            of_samples = generators[number * size : (number + 1) * size]
            with without_exchange(self._losses, number + 1 < len(batches)):
                values = self._losses(batch, of_samples)
                names = ", ".join(values)
                check_finite(
                    self._world,
                    torch.stack(list(values.values())),
                    f"the loss ({names})",
                    batch.get("keys", []),
                )
                (values["loss"] / len(batches)).backward()
            for key, value in values.items():
                totals[key] = totals.get(key, 0.0) + value.detach().float() / len(batches)
        return totals


def _per_sample(generator: torch.Generator, count: int, world: World) -> list[torch.Generator]:
    """Return a generator for each sample of this rank, which depends on the sample's place in the whole batch alone."""
    seeds = torch.randint(2**62, (count * world.size,), generator=generator, device=generator.device)
    return [torch.Generator(generator.device).manual_seed(seed) for seed in world.share(seeds).tolist()]


def check_parts(batch_size: int, accumulate: int, world: World) -> None:
    """Raise ``ValueError`` unless a batch divides into equal parts."""
    parts = world.size * accumulate
    if batch_size % parts:
        raise ValueError(
            f"config: batch_size is that of all processes: it must be a multiple of {world.size} processes times "
            f"loop.accumulate = {accumulate}, got {batch_size}"
        )


def check_finite(world: World, values: Tensor, what: str, keys: list[Any]) -> None:
    """Raise ``NonFiniteLossError`` on every rank, with the keys of the one that has it, unless all values are finite on all."""
    error = None
    if not torch.isfinite(values.detach()).all():
        error = NonFiniteLossError(f"{what} is not finite: {values.tolist()}; batch keys: {keys}")
    world.raise_any(error)


def data_parallel(module: nn.Module, world: World, *, some_unused: bool = False) -> nn.Module:
    """Return a module whose gradients become the mean over ranks; itself alone.

    Args:
        some_unused: parameters may have no part in a step's loss.
    """
    if world.size == 1:
        return module
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(
        module,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        process_group=world.group,
        **options,
        find_unused_parameters=some_unused,
        gradient_as_bucket_view=True,
    )


@contextmanager
def without_exchange(module: object, without: bool = True) -> Iterator[None]:
    """Keep gradients on their rank, to be exchanged with those of a later micro-batch."""
    alone = without and isinstance(module, DistributedDataParallel)
    with module.no_sync() if alone else nullcontext():  # type: ignore[attr-defined]
        yield
