"""Run a pretraining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfmvit.data import SeededLoader, collate_captions, open_captions
from cfmvit.models import CFMViT, Tokenizer, create_model, model_config
from cfmvit.pretrain.config import VOCAB_SIZE, PretrainConfig
from cfmvit.pretrain.objective import pretraining_losses
from cfmvit.training import fit, format_config, param_groups, warmup_cosine, warmup_linear
from cfmvit.training.device import choose_device
from cfmvit.training.precision import with_precision
from cfmvit.training.run_folder import run_folder, start_run, with_warmup

_TOKENIZER, _MODEL = "tokenizer.json", "model"


def pretrain(
    config: PretrainConfig, output: Path, *, resume: bool = False, overwrite: bool = False
) -> CFMViT:
    """Pretrain a CFM-ViT on image-text pairs.

    Writes into ``output``: ``config.json``, ``tokenizer.json``, ``metrics.jsonl``, TensorBoard events,
    ``checkpoint.pt`` and, at the end, the model as ``model/``.

    Args:
        resume: go on from ``output/checkpoint.pt``; on the CPU, with the same number of threads, the weights become bit for
            bit those of a run that was never interrupted.
        overwrite: begin anew where ``output`` already holds a run; what that left is kept until this one can replace it.

    Raises:
        ValueError, FileNotFoundError: a bad configuration, or data that can't be opened.
        FileExistsError: ``output`` holds a run, and neither ``resume`` nor ``overwrite``.
        RuntimeError: another process is running in ``output``.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    if not config.data:
        raise ValueError(
            "pretrain: data must be given, as coco:DIR, lvis:DIR, shards:GLOB or captions.json@image_folder"
        )
    with run_folder(output, resume=resume, overwrite=overwrite, product=_MODEL):
        return _pretrain(config, output, resume)


def _pretrain(config: PretrainConfig, output: Path, resume: bool) -> CFMViT:
    device = choose_device(config.device)
    config = with_warmup(config, output, resume=resume)
    config = replace(config, loop=with_precision(config.loop, device))
    optim = config.optim
    print(format_config(config))
    torch.manual_seed(config.loop.seed)
    options: dict[str, Any] = dict(config.model_options)
    dataset = open_captions(
        config.data,
        split="train",
        image_size=model_config(config.model, **options).image_size,
        augment=config.augment,
        crop_scale=config.crop_scale,
        flip=config.flip,
        broken_shards=config.broken_shards,
    )
    if not 2 <= config.batch_size <= len(dataset):
        raise ValueError(
            f"pretrain: batch_size must lie between 2 and the {len(dataset)} images of {config.data}, since a pair learns from "
            f"the others of its batch, got {config.batch_size}"
        )
    print(f"data: {dataset.summary}")
    tokenizer = _tokenizer(config, output, dataset, resume)
    model = create_model(config.model, tokenizer=tokenizer, **options).to(device)
    _say_what_is_cut(tokenizer, dataset.texts(), model.config.context_length)
    groups = param_groups(model, lr=optim.lr, weight_decay=optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(optim.beta1, optim.beta2))
    decay = warmup_linear if optim.decay == "linear" else warmup_cosine
    loader = SeededLoader(
        dataset, config.batch_size, seed=config.loop.seed, workers=config.workers, collate=collate_captions
    )

    def losses(batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        images = batch["images"].to(device, non_blocking=True)
        return pretraining_losses(
            model, images, batch["texts"], generator, reconstruction_weight=config.reconstruction_weight
        )

    start = start_run(config, output, model, optimizer, dataset.fingerprint(), resume=resume)
    tokenizer.save(output / _TOKENIZER)
    fit(
        model=model,
        losses=losses,
        optimizer=optimizer,
        schedule=decay(optim.warmup, config.loop.steps),
        loader=loader,
        config=config.loop,
        output=output,
        start=start,
        name="pretrain",
    )
    if loader.skipped:
        print(f"pretrain: {loader.skipped} corrupt images were skipped; their paths are in the log")
    model.save_pretrained(output / _MODEL)
    print(f"pretrain: the model is in {output / _MODEL}")
    return model


def _tokenizer(config: PretrainConfig, output: Path, dataset: Any, resume: bool) -> Tokenizer:
    """Return the run's tokenizer; a resumed run has that of its first part."""
    if resume and (output / _TOKENIZER).is_file():
        return Tokenizer.from_file(output / _TOKENIZER)
    if config.tokenizer:
        return Tokenizer.from_file(config.tokenizer)
    return Tokenizer.train(dataset.texts(), config.vocab_size or VOCAB_SIZE)


def _say_what_is_cut(tokenizer: Tokenizer, texts: list[str], context_length: int) -> None:
    """Say how many captions are longer than the text tower reads, by the first ten thousand."""
    looked_at = texts[:10_000]
    cut = sum(length > context_length for length in tokenizer.lengths(looked_at))
    if cut:
        print(f"data: {cut} of {len(looked_at)} captions are cut at context_length = {context_length} tokens")
