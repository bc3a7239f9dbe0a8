"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

Schedule = Callable[[int], float]


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
    no_decay: Callable[[str, Tensor], bool] = lambda name, parameter: False,
) -> list[dict[str, Any]]:
    """Group a model's trainable parameters by learning rate and weight decay.

    Vectors and scalars (norms, biases, temperatures), positional embeddings and mask tokens are never decayed.

    Args:
        lr: learning rate of a parameter whose ``lr_scale`` is 1.
        lr_scale: factor on ``lr`` by parameter name.
        no_decay: further parameters to leave undecayed, by name and value.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = not (
            parameter.ndim < 2 or name.endswith(("pos_embed", "mask_token")) or no_decay(name, parameter)
        )
        scale = lr_scale(name)
        group = groups.setdefault(
            (scale, decayed),
            {
                "params": [],
                "lr": lr * scale,
                "initial_lr": lr * scale,
                "weight_decay": weight_decay * decayed,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def warmup_within(warmup: int, steps: int) -> int:
    """Return a warm-up that ends within a run: a tenth of its steps where that asked for would not; it says so."""
    if warmup < steps:
        return warmup
    shorter = steps // 10
    print(f"optim.warmup = {warmup} would not end within loop.steps = {steps}: it is {shorter}")
    return shorter


def warmup_linear(warmup: int, total: int) -> Schedule:
    """Rise linearly over ``warmup`` steps, then fall linearly to zero at ``total`` (CFM-ViT section 4.1)."""
    return _after_warmup(warmup, lambda step: (total - step) / max(1, total - warmup))


def warmup_cosine(warmup: int, total: int) -> Schedule:
    """Rise linearly over ``warmup`` steps, then fall to zero at ``total`` along half a cosine."""
    return _after_warmup(
        warmup,
        lambda step: 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))),
    )


def warmup_steps(warmup: int, milestones: Iterable[int], gamma: float = 0.1) -> Schedule:
    """Rise linearly over ``warmup`` steps, then multiply by ``gamma`` at each milestone."""
    marks = sorted(milestones)
    return _after_warmup(warmup, lambda step: gamma ** sum(step >= mark for mark in marks))


def _after_warmup(warmup: int, rest: Schedule) -> Schedule:
    return lambda step: (step + 1) / warmup if step < warmup else max(0.0, rest(step))
