"""The training loop that pretraining and finetuning share."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from cfmvit.data.skipped import by_place
from cfmvit.progress import progress
from cfmvit.training.field_ranges import check, not_negative, positive
from cfmvit.training.gradients import Batch, Gradients, NonFiniteLossError
from cfmvit.training.metrics import MetricsLog
from cfmvit.training.optim import Schedule
from cfmvit.training.precision import with_precision
from cfmvit.training.saving import Saving
from cfmvit.training.sharding import clip_gradients
from cfmvit.training.speed import Speed
from cfmvit.training.stopping import Stopped, stop_requests
from cfmvit.training.world import World

_LOG = logging.getLogger(__name__)


class Loader(Protocol):
    """Batches that are a pure function of their number.

    Attributes:
        batch_size: samples of a step, on all ranks.
        skipped_paths: of the corrupt samples met so far by this rank.
        remarked: how many samples it has met that were taken although something about them is odd.
    """

    batch_size: int

    @property
    def skipped_paths(self) -> list[str]:
        """See above."""
        ...

    @property
    def remarked(self) -> int:
        """See above."""
        ...

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Yield batches ``start``, ``start + 1``, ... without end."""
        ...


@dataclass
class LoopConfig:
    """How long to train, in what precision, and how often to write.

    A step takes ``batch_size`` samples, over all processes; each takes its part in ``accumulate`` pieces, one after another,
    to need less memory. A contrastive loss is over the whole batch all the same. ``precision`` "auto" is bf16 where the device
    has products of it, else fp32; a run's ``config.json`` says which. ``timeout`` is for how many seconds processes wait for
    each other.
    """

    steps: int = 1000
    accumulate: int = 1
    clip_grad: float | None = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    log_every: int = 10
    save_every: int = 500
    seed: int = 0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        positive("loop.", self, "steps", "accumulate", "log_every", "save_every", "timeout")
        not_negative("loop.", self, "seed")
        check("loop.seed", self.seed, self.seed < 2**63, "be below 2**63")
        if self.clip_grad is not None:
            positive("loop.", self, "clip_grad")


@dataclass(frozen=True)
class Evaluation:
    """What is measured every ``every`` steps and after the last: ``run`` is called on all ranks, the main one's is logged."""

    every: int
    run: Callable[[], dict[str, float]]


def fit(
    *,
    model: nn.Module,
    gradients: Gradients,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    loader: Loader,
    config: LoopConfig,
    output: Path,
    world: World,
    start: int = 0,
    name: str = "train",
    evaluation: Evaluation | None = None,
    seconds_at_peak: float | None = None,
) -> None:
    """Train ``model``; write ``metrics.jsonl``, TensorBoard events and ``checkpoints`` into ``output``.

    A step is a pure function of the weights and its number: batches come from ``loader`` by number, and every random
    draw from a generator that is seeded by (``config.seed``, step). So a resumed run repeats an uninterrupted
    one bit for bit. The main process of ``world`` alone writes; all of them go through the same steps, and end alike.

    The weights that a step leaves are saved once the next step has found their loss and gradient finite, beside the steps that
    follow (``Saving``); those of the last step, once they are finite themselves.

    Args:
        schedule: factor on each group's ``initial_lr`` by step.
        loader: this rank's micro-batches, ``config.accumulate`` of them a step.
        start: steps that are done, as ``load_checkpoint`` returns them.
        evaluation: what else is measured now and then. It must draw from no generator that training draws from.
        seconds_at_peak: that the devices of all ranks would take for a sample at their peak rate; the log then has ``mfu``.

    Raises:
        NonFiniteLossError: with the step and the batch's keys, or the weight.
        OSError: the disk is full.
        MissingRankError: another process does not answer.
        Stopped: SIGINT or SIGTERM came, to any of the processes; the steps that are done are saved.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    config = with_precision(config, world.device)
    speed = Speed(loader.batch_size, seconds_at_peak)
    batches = speed.waits(loader.iterate(start * config.accumulate))
    log = None
    with world.together():
        if world.main:
            log = MetricsLog(output, start)
    bar = progress(config.steps * loader.batch_size, desc=name, initial=start * loader.batch_size)
    model.train()
    speed.start(start)
    watch = _Divergence()
    saving = Saving(output, model, optimizer, world)
    done = start
    try:
        with stop_requests() as request, world.reaching():
            for step in range(start, config.steps):
                world.doing = f"step {step}"
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * schedule(step)
                values, norm = _step(gradients, parameters, batches, step, config, world, saving)
                if step > start and step % config.save_every == 0:
                    saving.save(step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                bar.update(loader.batch_size)
                last = step + 1 == config.steps
                due = evaluation if evaluation and (last or (step + 1) % evaluation.every == 0) else None
                if last or due or (step + 1) % config.log_every == 0:
                    pace = speed.look(step + 1, world)
                    found = due.run() if due else {}
                    speed.start(step + 1)
                    means = world.mean(torch.stack([value.double() for value in values.values()])).tolist()
                    metrics = dict(zip(values, means, strict=True))
                    bar.set_postfix({"loss": f"{metrics['loss']:.4f}"}, refresh=False)
                    lr = max(group["lr"] for group in optimizer.param_groups)
                    with world.together():
                        if log is not None:
                            log.write(step, {**metrics, "grad_norm": norm, "lr": lr, **pace, **found})
                            watch.look(step, metrics)
                            saving.check()
                done = step + 1
                if world.most(request.signal or 0):
                    break
            if done > start:
                saving.save(done)
                saving.finish()
            # After the last step too: what would come next does not begin.
            if signal := world.most(request.signal or 0):
                raise Stopped(signal)
    finally:
        saving.close()
        bar.close()
        if log is not None:
            log.close()
    _say_what_was_odd(name, loader, world)


def _step(
    gradients: Gradients,
    parameters: list[Tensor],
    batches: Iterator[Batch],
    step: int,
    config: LoopConfig,
    world: World,
    saving: Saving,
) -> tuple[dict[str, Tensor], float]:
    """Leave clipped gradients on the parameters; return this rank's losses and the norm of the gradient of all."""
    loaded: list[Batch] = []
    try:
        with world.together():
            loaded = [_next(batches) for _ in range(config.accumulate)]
        generator = torch.Generator(world.device).manual_seed(_mix(config.seed, step))
        with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            values = gradients(loaded, generator)
        norm = clip_gradients(parameters, config.clip_grad)
        if not math.isfinite(norm):
            keys = [key for batch in loaded for key in batch.get("keys", [])]
            raise NonFiniteLossError(f"the gradient is not finite: {norm}; batch keys: {keys}")
    except (NonFiniteLossError, BatchError) as error:
        raise type(error)(f"step {step}: {error}; {saving.kept()}") from error
    return values, norm


def _say_what_was_odd(name: str, loader: Loader, world: World) -> None:
    skipped = set().union(*world.gather(loader.skipped_paths))
    if skipped:
        print(f"{name}: {len(skipped)} corrupt images were skipped, {by_place(skipped)}; the log names them")
    remarked = sum(world.gather(loader.remarked))
    if remarked:
        print(f"{name}: {remarked} images were odd in size or annotations; the log says which and how")


class _Divergence:
    """Says once that a loss, still finite, has grown far above what it was."""

    def __init__(self) -> None:
        self._least: dict[str, float] = {}
        self._said = False

    def look(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            least = self._least[name] = min(value, self._least.get(name, math.inf))
            if not self._said and value > 10 * max(least, 1.0) and name != "temperature":
                self._said = True
                _LOG.warning(
                    "%s is %.4g at step %d and was %.4g: training diverges; a lower optim.lr may help",
                    name,
                    value,
                    step,
                    least,
                )


class BatchError(RuntimeError):
    """A batch can't be loaded."""


def _next(batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except RuntimeError as error:  # how PyTorch reports a worker that the system killed
        raise BatchError(f"the batch can't be loaded: {error}") from error


def _mix(seed: int, number: int) -> int:
    """Return one seed for a pair, far from those of neighbouring pairs (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + number + 1) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 31)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)
