"""What a pretraining will take, before anything is started: ``cfmvit pretrain --plan``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from cfmvit.models import CFMViT, ModelConfig, Tokenizer
from cfmvit.ops.contrastive.text_exchange import GATHER_BYTES
from cfmvit.pretrain.config import PretrainConfig
from cfmvit.pretrain.exchange import ACCUMULATED, Form, gradient_bytes, loss_bytes, loss_memory
from cfmvit.pretrain.flops import Flops, flops, token_counts
from cfmvit.pretrain.memory import Precision, activation_bytes, state_bytes
from cfmvit.pretrain.starting import starting_point
from cfmvit.training.field_ranges import check
from cfmvit.training.peak import peak_tflops

UTILISATION = 0.4  # of the peak: what is assumed where a time is told
_DAY = 86_400
_OF_A_MACHINE = 8  # devices: where there are more, the loss goes round in a ring


@dataclass(frozen=True)
class Plan:
    """A pretraining by numbers; captions are taken to be as long as the text tower reads.

    Attributes:
        model: configuration of the model.
        parameters: of the image tower, the text tower, the decoder and the rest.
        devices: of the cluster; ``pieces`` and ``batch`` as the run's configuration says.
        form: how the loss meets the texts of other devices.
        tflops: peak of a device, where it is known.
    """

    model: ModelConfig
    parameters: dict[str, int]
    devices: int
    batch: int
    pieces: int
    steps: int
    precision: Precision
    checkpointed: bool
    form: Form
    tflops: float | None

    @property
    def item(self) -> int:
        """Bytes of an element of the features that the loss sees."""
        return 4 if self.precision == "fp32" else 2

    @property
    def flops(self) -> Flops:
        """Of an image and its caption."""
        return flops(self.model, self.model.context_length)

    @property
    def executed(self) -> int:
        """FLOPs of an image that are carried out: with those of passes that are computed again to save memory."""
        counted = self.flops
        again = counted.forward if self.checkpointed else 0
        return counted.training + again + (counted.contrastive if self.pieces > 1 else 0)

    @property
    def of_loss(self) -> int:
        """FLOPs of an image's logits with all texts of the batch: one product forward, three backward."""
        return 4 * 2 * self.batch * self.model.joint_width

    def memory(self) -> dict[str, int]:
        """Return what a device holds at its fullest, in bytes, by what it is for."""
        piece = self.batch // (self.devices * self.pieces)
        length = self.model.context_length
        held = state_bytes(sum(self.parameters.values()), self.precision)
        held["activations"] = activation_bytes(
            self.model, piece, length, self.precision, checkpointed=self.checkpointed
        )
        held["loss"] = loss_memory(self.form, self.batch, self.devices, self.model.joint_width, self.item)
        return held

    def seconds(self) -> float | None:
        """Return how long a step takes at ``UTILISATION`` of the peak; None where that isn't known."""
        if self.tflops is None:
            return None
        rate = self.devices * self.tflops * 1e12 * UTILISATION
        return self.batch * (self.executed + self.of_loss) / rate


def make_plan(config: PretrainConfig, devices: int) -> Plan:
    """Plan a run on so many devices; its data are not looked at, a model to start from is read.

    Raises:
        ValueError: no device, a batch that they do not divide, weights in shards, or a model that can't be made.
    """
    check("devices", devices, devices >= 1, "be at least 1")
    whole = config.sharding == "none"
    check(
        "sharding",
        config.sharding,
        whole,
        "be none for a plan, which counts weights that every device has whole",
    )
    parts = devices * config.loop.accumulate
    rule = f"be a multiple of {devices} devices times loop.accumulate = {config.loop.accumulate}"
    check("batch_size", config.batch_size, config.batch_size % parts == 0, rule)
    precision: Precision = "fp32" if config.loop.precision == "fp32" else "bf16"
    peak = config.device_tflops
    if peak is None and torch.cuda.is_available():
        peak = peak_tflops(torch.device("cuda"), precision)
    model = _model(config)
    item = 4 if precision == "fp32" else 2
    gathered = config.batch_size * model.joint_width * (item + ACCUMULATED)
    return Plan(
        model=model,
        parameters=_parameters(model),
        devices=devices,
        batch=config.batch_size,
        pieces=config.loop.accumulate,
        steps=config.loop.steps,
        precision=precision,
        checkpointed=config.checkpoint_activations,
        form="ring" if devices > _OF_A_MACHINE or gathered > GATHER_BYTES else "gather",
        tflops=peak,
    )


def format_plan(plan: Plan) -> str:
    """Return a plan as lines to read."""
    return "\n".join(f"{name:16}{text}" for name, text in _lines(plan))


def _lines(plan: Plan) -> Iterator[tuple[str, str]]:
    counted, memory = plan.flops, plan.memory()
    visible, masked = token_counts(plan.model)
    length, own = plan.model.context_length, plan.batch // plan.devices
    parts = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in plan.parameters.items() if count > 1)
    yield "model", f"{plan.model.name}, {sum(plan.parameters.values()) / 1e6:.1f} M parameters: {parts}"
    pieces = f" in {plan.pieces} pieces" if plan.pieces > 1 else ""
    spread = "1 device" if plan.devices == 1 else f"{plan.devices:,} devices, {own:,} on each"
    yield "batch", f"{plan.batch:,} on {spread}{pieces}, {plan.precision}"
    yield (
        "FLOPs an image",
        f"{_giga(counted.forward)} forward: image {_giga(counted.patches + counted.image)}, text {_giga(counted.text)}, "
        f"reconstruction {_giga(counted.reconstruction)}; {_giga(counted.training)} trained, {_giga(plan.executed)} carried out, "
        f"{_giga(plan.of_loss)} of the loss",
    )
    inside = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items())
    yield "memory", f"{sum(memory.values()) / 1e9:.3g} GB a device: {inside}"
    yield (
        "tokens",
        f"{plan.batch * (visible + masked + length):,} a step, {visible} visible and {masked} masked ones of an image, "
        f"{length} of its caption; {plan.steps * plan.batch:.3g} images and "
        f"{plan.steps * plan.batch * (visible + masked + length):.3g} tokens in {plan.steps:,} steps",
    )
    gradients = gradient_bytes(sum(plan.parameters.values()), plan.devices)
    exchanged = loss_bytes(plan.form, plan.batch, plan.devices, plan.model.joint_width, plan.item)
    yield (
        "network",
        f"{gradients / 1e9:.2f} GB of gradients and {exchanged / 1e9:.3f} GB of the loss ({plan.form}) a step and device",
    )
    seconds = plan.seconds()
    if seconds is None:
        yield "time", "not known: device_tflops=N says the peak of a device"
    else:
        yield (
            "time",
            f"{seconds:.3g} s a step, {plan.batch / seconds:,.0f} images/s, {plan.steps * seconds / _DAY:.1f} days, at "
            f"{UTILISATION:.0%} of {plan.tflops:g} TFLOP/s a device and without waiting for the network",
        )


def _giga(count: float) -> str:
    return f"{count / 1e9:.3g} G"


def _model(config: PretrainConfig) -> ModelConfig:
    """Return the model of a run; its text tower has as many ids as the tokenizer may have."""
    vocab_size = config.vocab_size
    if config.tokenizer is not None:
        vocab_size = Tokenizer.from_file(config.tokenizer).vocab_size
    if vocab_size is not None:
        config = replace(config, model_options={"vocab_size": vocab_size, **config.model_options})
    return starting_point(config).config


def _parameters(config: ModelConfig) -> dict[str, int]:
    with torch.device("meta"):
        model = CFMViT(config)
    parts = {"image": (model.visual, model.image_head), "text": (model.text,), "decoder": (model.decoder,)}
    counts = {
        name: sum(p.numel() for module in modules if module is not None for p in module.parameters())
        for name, modules in parts.items()
    }
    return {**counts, "temperature": model.logit_scale.numel()}
