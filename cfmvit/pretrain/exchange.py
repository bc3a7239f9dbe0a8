"""What the processes of a pretraining send each other, and what each form of the contrastive loss holds on a device.

Letters: W devices, b pairs on each, B = W b, D width of the joint space.
"""

from __future__ import annotations

from typing import Literal

Form = Literal["gather", "ring"]
ACCUMULATED = 4  # bytes of a gradient of the features, which is summed in float32


def gradient_bytes(parameters: int, devices: int) -> int:
    """Return what a device sends in a step for the mean of the gradients, in a ring: all but its own part, twice."""
    return round(2 * (devices - 1) / devices * 4 * parameters)


def loss_bytes(form: Form, batch: int, devices: int, width: int, item: int) -> int:
    """Return what a device receives in a step for the loss.

    A gather brings the texts of the others, and its reduce-scatter their gradient. In a ring texts come in the forward and again in
    the backward pass, there with their gradient. Either has shift and sum of every column, and again in the backward pass.

    Args:
        item: bytes of an element of the features.
    """
    others = batch // devices * (devices - 1)
    times = 1 if form == "gather" else 2
    return others * (width * (times * item + ACCUMULATED) + 4 * ACCUMULATED)


def loss_memory(form: Form, batch: int, devices: int, width: int, item: int) -> int:
    """Return what the loss holds on a device beside its own features: the texts and their gradient, of all or of two devices."""
    held = batch if form == "gather" else 2 * (batch // devices)
    return held * width * (item + ACCUMULATED)


def logits_memory(batch: int, devices: int, width: int, item: int, *, local: bool) -> int:
    """Return what open_clip's loss holds on a device at its peak: gathered features with their gradient, and the logits.

    Those are in float32: a log-softmax for either direction, and in the backward pass two matrices more.

    Args:
        local: with ``local_loss``, a device has its own rows of either direction, (b, B); else all of them, (B, B).
    """
    rows = batch // devices if local else batch
    return 2 * batch * width * (item + ACCUMULATED) + 16 * rows * batch
