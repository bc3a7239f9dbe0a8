"""Run a pretraining."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cfmvit.data import CaptionDataset, SeededLoader, collate_captions, open_captions
from cfmvit.data.indexing import share_indexing
from cfmvit.models import CFMViT, Tokenizer
from cfmvit.models.blocks import checkpoint_activations
from cfmvit.pretrain.config import VOCAB_SIZE, PretrainConfig
from cfmvit.pretrain.flops import flops
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.pretrain.held_out import held_out
from cfmvit.pretrain.starting import Start, make_model, starting_point
from cfmvit.training import (
    Evaluation,
    World,
    fit,
    format_config,
    join,
    param_groups,
    warmup_cosine,
    warmup_linear,
)
from cfmvit.training.peak import peak_tflops
from cfmvit.training.run_folder import run_folder, settled, start_run
from cfmvit.training.sharding import gathered
from cfmvit.training.world import quiet

_TOKENIZER, _MODEL = "tokenizer.json", "model"
_LEARNT_FROM, _LOOKED_AT = (
    100_000,
    10_000,
)  # images whose captions a tokenizer is learnt from, and measured by


def pretrain(
    config: PretrainConfig, output: Path, *, resume: bool = False, overwrite: bool = False
) -> CFMViT:
    """Pretrain a CFM-ViT on image-text pairs, in one process or in those that ``torchrun`` has started.

    Writes into ``output``: ``config.json``, ``tokenizer.json``, ``metrics.jsonl``, TensorBoard events,
    ``checkpoints/`` and, at the end, the model as ``model/``.

    Args:
        resume: go on from the newest whole checkpoint; on the CPU, with the same number of threads, the weights become bit for
            bit those of a run that was never interrupted.
        overwrite: begin anew where ``output`` already holds a run; what that left is kept until this one can replace it.

    Raises:
        ValueError, FileNotFoundError: a bad configuration, or data that can't be opened.
        FileExistsError: ``output`` holds a run, and neither ``resume`` nor ``overwrite``.
        RuntimeError: another run is going on in ``output``, or a process of this one is missing.
        NonFiniteLossError: the loss became NaN or infinite.
        OSError: the disk is full; the last good checkpoint is there.
    """
    if not config.data:
        raise ValueError(
            "pretrain: data must be given, as coco:DIR, lvis:DIR, shards:GLOB, captions.json@image_folder, pairs.csv or pairs.tsv"
        )
    with (
        join(config.device, config.loop.timeout) as world,
        run_folder(output, world, resume=resume, overwrite=overwrite, product=_MODEL),
    ):
        return _pretrain(config, output, resume, world)


def _pretrain(config: PretrainConfig, output: Path, resume: bool, world: World) -> CFMViT:
    with world.together(), quiet(world):
        config = settled(config, output, world, resume=resume)
        print(format_config(config))
    optim = config.optim
    dataset, model = _prepared(config, output, resume, world)
    sharded = config.sharding == "fsdp" and world.size > 1
    whole = model  # for all that is not training
    if sharded:
        whole = copy.deepcopy(model.cpu())  # a device need not hold two
        model.to(world.device)
    gradients = ContrastiveGradients(model, world, config.reconstruction_weight, sharded=sharded)
    with world.together(), quiet(world):
        assert model.tokenizer is not None
        tokens = _caption_length(model.tokenizer, dataset.texts(_LOOKED_AT), model.config.context_length)
        seconds_at_peak = _seconds_at_peak(config, model, tokens, world)
        groups = param_groups(model, lr=optim.lr, weight_decay=optim.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(optim.beta1, optim.beta2))
        evaluation = held_out(config, whole, world)
    decay = warmup_linear if optim.decay == "linear" else warmup_cosine
    loader = SeededLoader(
        dataset,
        config.batch_size,
        seed=config.loop.seed,
        workers=config.workers,
        collate=collate_captions,
        rank=world.rank,
        world_size=world.size,
        pieces=config.loop.accumulate,
        sizes=dataset.sizes,
        max_skipped=config.max_skipped,
    )
    start = start_run(config, output, model, optimizer, dataset.fingerprint(), world, resume=resume)
    with world.together():
        if world.main:
            model.tokenizer.save(output / _TOKENIZER)
    fit(
        model=model,
        gradients=gradients,
        optimizer=optimizer,
        schedule=decay(optim.warmup, config.loop.steps),
        loader=loader,
        config=config.loop,
        output=output,
        world=world,
        start=start,
        name="pretrain",
        evaluation=_of_shards(evaluation, model, whole) if evaluation and sharded else evaluation,
        seconds_at_peak=seconds_at_peak,
    )
    if sharded:
        with world.reaching():
            _fetch(model, whole)
    with world.together():
        if world.main:
            whole.save_pretrained(output / _MODEL)
            print(f"pretrain: the model is in {output / _MODEL}")
    return whole


def _of_shards(evaluation: Evaluation, model: CFMViT, whole: CFMViT) -> Evaluation:
    """Return an evaluation of a model in shards by its plain copy, which each rank calls as often as it has images."""

    def run() -> dict[str, float]:
        _fetch(model, whole)
        found = evaluation.run()
        whole.cpu()
        return found

    return replace(evaluation, run=run)


def _fetch(model: CFMViT, whole: CFMViT) -> None:
    """Bring the weights of a model in shards into its plain copy, on every rank."""
    whole.load_state_dict({name: gathered(value) for name, value in model.state_dict().items()})
    whole.to(model.device)


def _prepared(
    config: PretrainConfig, output: Path, resume: bool, world: World
) -> tuple[CaptionDataset, CFMViT]:
    """Return the data and the model; of what that began from nothing is kept."""
    with world.together():
        share_indexing(config.data, "train", world.rank, world.size)
    with world.together(), quiet(world):
        begin = starting_point(config)
        dataset = _open(config, begin.config.image_size)
        print(f"data: {dataset.summary}")
    made = world.from_main(lambda: str(_tokenizer(config, begin, output, dataset, resume)))
    with world.together():
        model = make_model(begin, config, Tokenizer.from_str(made)).to(world.device)
        if config.checkpoint_activations:
            checkpoint_activations(model)
    return dataset, model


def _open(config: PretrainConfig, image_size: int) -> CaptionDataset:
    dataset = open_captions(
        config.data,
        split="train",
        image_size=image_size,
        augment=config.augment,
        crop_scale=config.crop_scale,
        flip=config.flip,
        broken_shards=config.broken_shards,
        max_skipped=config.max_skipped,
    )
    if not 2 <= config.batch_size <= len(dataset):
        raise ValueError(
            f"pretrain: batch_size must lie between 2 and the {len(dataset)} images of {config.data}, since a pair learns from "
            f"the others of its batch, got {config.batch_size}"
        )
    return dataset


def _tokenizer(config: PretrainConfig, begin: Start, output: Path, dataset: Any, resume: bool) -> Tokenizer:
    """Return the run's tokenizer; a resumed run has that of its first part."""
    if resume and (output / _TOKENIZER).is_file():
        return Tokenizer.from_file(output / _TOKENIZER)
    if begin.tokenizer is not None:
        return begin.tokenizer
    return new_tokenizer(config, dataset)


def new_tokenizer(config: PretrainConfig, dataset: CaptionDataset) -> Tokenizer:
    """Return the tokenizer of a run that begins with fresh weights: a file's, or one that is learnt from the captions."""
    if config.tokenizer:
        return Tokenizer.from_file(config.tokenizer)
    return Tokenizer.train(dataset.texts(_LEARNT_FROM), config.vocab_size or VOCAB_SIZE)


def _caption_length(tokenizer: Tokenizer, texts: list[str], context_length: int) -> float:
    """Return how many tokens a caption has on average, and say how many are cut."""
    lengths = tokenizer.lengths(texts)
    cut = sum(length > context_length for length in lengths)
    if cut:
        print(f"data: {cut} of {len(lengths)} captions are cut at context_length = {context_length} tokens")
    return sum(min(length, context_length) for length in lengths) / len(lengths)


def _seconds_at_peak(config: PretrainConfig, model: CFMViT, text_tokens: float, world: World) -> float | None:
    """Return how long all devices would take for an image and its caption at their peak; None, and say so, where it isn't known."""
    peak = config.device_tflops or peak_tflops(world.device, config.loop.precision)
    if peak is None:
        print("metrics: no mfu, since nothing says this device's peak; device_tflops does")
        return None
    return flops(model.config, text_tokens).training / (peak * 1e12 * world.size)
