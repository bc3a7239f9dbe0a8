"""The training loop that pretraining and finetuning share."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cfmvit.progress import progress
from cfmvit.training.checkpoint import NAME, save_checkpoint
from cfmvit.training.field_ranges import check, not_negative, positive
from cfmvit.training.metrics import MetricsLog
from cfmvit.training.optim import Schedule
from cfmvit.training.precision import with_precision
from cfmvit.training.stopping import Stopped, stop_requests

_LOG = logging.getLogger(__name__)

Losses = Callable[[dict[str, Any], torch.Generator], dict[str, Tensor]]


class Loader(Protocol):
    """Batches that are a pure function of their number."""

    batch_size: int

    def iterate(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield batches ``start``, ``start + 1``, ... without end."""
        ...


@dataclass
class LoopConfig:
    """How long to train, in what precision, and how often to write.

    ``accumulate`` steps of ``batch_size`` make one step of the optimizer; each is contrasted within itself, so the number of
    negatives stays that of ``batch_size``. ``precision`` "auto" is bf16 where the device has products of it, else fp32; a run's ``config.json`` says which.
    """

    steps: int = 1000
    accumulate: int = 1
    clip_grad: float | None = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    log_every: int = 10
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        positive("loop.", self, "steps", "accumulate", "log_every", "save_every")
        not_negative("loop.", self, "seed")
        check("loop.seed", self.seed, self.seed < 2**63, "be below 2**63")
        if self.clip_grad is not None:
            positive("loop.", self, "clip_grad")


class NonFiniteLossError(FloatingPointError):
    """A loss, a gradient or a weight became NaN or infinite; the last good checkpoint is untouched."""


def fit(
    *,
    model: nn.Module,
    losses: Losses,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    loader: Loader,
    config: LoopConfig,
    output: Path,
    start: int = 0,
    name: str = "train",
) -> None:
    """Train ``model``; write ``metrics.jsonl``, TensorBoard events and ``checkpoint.pt`` into ``output``.

    A step is a pure function of the weights and its number: batches come from ``loader`` by number, and every random
    draw from a generator that is seeded by (``config.seed``, micro-step). So a resumed run repeats an uninterrupted
    one bit for bit.

    The weights that a step leaves are saved once the next step has found their loss and gradient finite; those of the
    last step, once they are finite themselves.

    Args:
        losses: maps a batch and a generator (on the model's device) to named losses; ``"loss"`` is minimised.
        schedule: factor on each group's ``initial_lr`` by step.
        start: steps that are done, as ``load_checkpoint`` returns them.

    Raises:
        NonFiniteLossError: with the step and the batch's keys, or the weight.
        Stopped: SIGINT or SIGTERM came; the steps that are done are saved.
    """
    output.mkdir(parents=True, exist_ok=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    config = with_precision(config, device)
    batches = loader.iterate(start * config.accumulate)
    log = MetricsLog(output, start)
    bar = progress(
        config.steps * config.accumulate * loader.batch_size,
        desc=name,
        initial=start * config.accumulate * loader.batch_size,
    )
    model.train()
    logged, since = start, time.perf_counter()
    watch = _Divergence()
    try:
        with stop_requests() as request:
            for step in range(start, config.steps):
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * schedule(step)
                values, keys = _accumulate(losses, batches, step, config, device, output)
                norm = nn.utils.clip_grad_norm_(parameters, config.clip_grad or math.inf)
                if not torch.isfinite(norm):
                    raise NonFiniteLossError(
                        f"the gradient is not finite at step {step}: {norm.item()}; batch keys: {keys}; {_kept(output)}"
                    )
                if step > start and step % config.save_every == 0:
                    _save(output, model, optimizer, step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                bar.update(config.accumulate * loader.batch_size)
                if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                    now = time.perf_counter()
                    rate = (step + 1 - logged) * config.accumulate * loader.batch_size / (now - since)
                    logged, since = step + 1, now
                    metrics = {key: value.item() for key, value in values.items()}
                    bar.set_postfix({"loss": f"{metrics['loss']:.4f}"}, refresh=False)
                    lr = max(group["lr"] for group in optimizer.param_groups)
                    log.write(step, {**metrics, "grad_norm": norm.item(), "lr": lr, "images_per_s": rate})
                    watch.look(step, metrics)
                if request.signal is not None and step + 1 < config.steps:
                    _save(output, model, optimizer, step + 1)
                    raise Stopped(request.signal)
        if start < config.steps:
            _save(output, model, optimizer, config.steps)
    finally:
        bar.close()
        log.close()


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


def _accumulate(
    losses: Losses,
    batches: Iterator[dict[str, Any]],
    step: int,
    config: LoopConfig,
    device: torch.device,
    output: Path,
) -> tuple[dict[str, Tensor], list[Any]]:
    """Run the micro-steps of one step; leave the mean gradient on the parameters, return mean losses and batch keys."""
    totals: dict[str, Tensor] = {}
    keys: list[Any] = []
    for micro in range(step * config.accumulate, (step + 1) * config.accumulate):
        batch = _next(batches, step, output)
        keys += batch.get("keys", [])
        generator = torch.Generator(device).manual_seed(_mix(config.seed, micro))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            values = losses(batch, generator)
        loss = values["loss"]
        if not torch.isfinite(loss):
            found = {key: value.item() for key, value in values.items()}
            raise NonFiniteLossError(
                f"the loss is not finite at step {step}: {found}; batch keys: {batch.get('keys')}; "
                f"{_kept(output)}"
            )
        (loss / config.accumulate).backward()
        for key, value in values.items():
            totals[key] = totals.get(key, 0.0) + value.detach().float() / config.accumulate
    return totals, keys


def _next(batches: Iterator[dict[str, Any]], step: int, output: Path) -> dict[str, Any]:
    try:
        return next(batches)
    except RuntimeError as error:  # how PyTorch reports a worker that the system killed
        raise RuntimeError(f"the batch of step {step} can't be loaded: {error}; {_kept(output)}") from error


def _save(output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Save a checkpoint after ``steps`` steps; one that holds a NaN or an infinity never replaces a good one."""
    for name, weight in model.named_parameters():
        state = {f"{key} of {name}": value for key, value in optimizer.state.get(weight, {}).items()}
        for what, value in {name: weight, **state}.items():
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                raise NonFiniteLossError(f"{what} is not finite after step {steps - 1}; {_kept(output)}")
    save_checkpoint(output, model, optimizer, steps)


def _kept(output: Path) -> str:
    """Say which checkpoint a stopped run leaves."""
    path = output / NAME
    return f"the last good checkpoint is {path}" if path.is_file() else "no checkpoint had been saved yet"


def _mix(seed: int, number: int) -> int:
    """Return one seed for a pair, far from those of neighbouring pairs (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + number + 1) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 31)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)
