"""Make the data, pretrain, finetune with and without pretraining, evaluate, and write the report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfmvit._io import atomic_write
from cfmvit._machine import device_name
from cfmvit.data import open_detection
from cfmvit.data.scenes import make_scenes
from cfmvit.demo.outcome import Outcome
from cfmvit.demo.page import write_page
from cfmvit.demo.presets import PRESETS, Preset
from cfmvit.detection import Detector, finetune, predict_dataset
from cfmvit.evaluation import (
    class_embeddings,
    classify_regions,
    dense_tokens,
    evaluate_results,
    format_table,
    imagined_tokens,
    pointing_accuracy,
    value_tokens,
)
from cfmvit.evaluation.pointing import Tokens
from cfmvit.models import CFMViT, Tokenizer, create_model
from cfmvit.pretrain import pretrain

_PERMUTATIONS = 8  # of names, whose mean is chance: a single one may hit
_POINTING_PERMUTATIONS = 3


def demo(preset: str = "default", output: Path = Path("runs/demo")) -> Path:
    """Run the demo and return the path of its report.

    Args:
        preset: ``quick`` (a few minutes on two CPU cores), ``default`` (about twice that), ``full`` (an hour or more, or a GPU).
        output: folder of everything that is made: data, both detectors, ``report.html``, ``summary.json``.
    """
    if preset not in PRESETS:
        raise ValueError(f"demo: preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    chosen = PRESETS[preset]
    seconds: dict[str, float] = {}
    with _timed("data", seconds):
        make_scenes(output / "data", chosen.scenes)
    data = f"lvis:{output / 'data'}"
    with _timed("pretrain", seconds):
        model = pretrain(replace(chosen.pretrain, data=data), output / "pretrain", overwrite=True).eval()
    scratch = _untrained(model, output / "scratch", chosen)
    detectors: dict[str, Detector] = {}
    for name, folder in (("pretrained", output / "pretrain"), ("from scratch", output / "scratch")):
        with _timed(f"finetune, {name}", seconds):
            config = replace(chosen.finetune, model=str(folder / "model"), data=data)
            detectors[name] = finetune(config, output / f"finetune-{name.replace(' ', '-')}", overwrite=True)
    outcome = Outcome(chosen, output, data, detectors["pretrained"], model, seconds=seconds)
    with _timed("evaluate", seconds):
        _evaluate(outcome, detectors, {"pretrained": model, "from scratch": scratch})
    with _timed("report", seconds):
        page = write_page(outcome)
    _write_summary(outcome)
    print(format_table(outcome.metrics))
    print(f"report: {page}")
    return page


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"== {stage}")
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _untrained(model: CFMViT, folder: Path, preset: Preset) -> CFMViT:
    """Save and return the same model with fresh weights and the same vocabulary: the control of the experiment."""
    torch.manual_seed(preset.pretrain.loop.seed + 1)
    tokenizer: Tokenizer | None = model.tokenizer
    fresh = create_model(preset.pretrain.model, tokenizer=tokenizer, **preset.pretrain.model_options)
    fresh.save_pretrained(folder / "model")
    return fresh.to(model.device).eval()


def _evaluate(outcome: Outcome, detectors: dict[str, Detector], models: dict[str, CFMViT]) -> None:
    preset = outcome.preset
    dataset = open_detection(
        outcome.data, split="val", base_only=False, image_size=preset.finetune.detector.image_size
    )
    names = [category.name for category in dataset.categories]
    for name, detector in detectors.items():
        results = predict_dataset(detector, dataset, outcome.folder / f"finetune-{name.replace(' ', '-')}")
        outcome.metrics[name] = evaluate_results(results, dataset.annotations_path)["bbox"]
        if name == "pretrained":
            chance = _chance(results, dataset)
        classes = class_embeddings(models[name], names, preset.finetune.detector.templates)
        outcome.regions[name] = classify_regions(models[name], dataset, classes)
        outcome.pointing |= _pointing(models[name], name, dataset, classes)
    outcome.metrics["shuffled names"] = chance
    outcome.categories = {
        "all": len(names),
        "novel": sum(category.novel for category in dataset.categories),
    }


def _pointing(model: CFMViT, name: str, dataset: Any, classes: Tensor) -> dict[str, dict[str, float]]:
    """Return the pointing accuracy of a model's tokens, of their own values, and of what its decoder predicts.

    Names exchanged tell how much of it is that objects stand out, whatever is asked for.
    """
    ways: dict[str, Tokens] = {
        "values": lambda images, _: value_tokens(model, images),
        "tokens": lambda images, _: dense_tokens(model, images),
        "decoder": lambda images, number: imagined_tokens(model, images, number),
    }
    found = {
        f"{name}, {way}": pointing_accuracy(model, dataset, classes, tokens) for way, tokens in ways.items()
    }
    orders = [np.random.default_rng(seed).permutation(len(classes)) for seed in range(_POINTING_PERMUTATIONS)]
    runs = [pointing_accuracy(model, dataset, classes[order], ways["values"]) for order in orders]
    return {**found, f"{name}, values, shuffled names": _mean(runs)}


def _write_summary(outcome: Outcome) -> None:
    summary: dict[str, Any] = {
        "preset": outcome.preset.name,
        "device": device_name(outcome.model.device),
        "torch": torch.__version__,
        "metrics": _without_nan(outcome.metrics),
        "zero_shot_regions": _without_nan(outcome.regions),
        "pointing": _without_nan(outcome.pointing),
        "categories": outcome.categories,
        "seconds": outcome.seconds,
    }
    with atomic_write(outcome.folder / "summary.json", "w") as file:
        json.dump(summary, file, indent=2, allow_nan=False)


def _without_nan(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no NaN: groups without a box are null."""
    return {
        name: {key: value if math.isfinite(value) else None for key, value in row.items()}
        for name, row in table.items()
    }


def _chance(results: Path, dataset: Any) -> dict[str, float]:
    """Return what the same boxes score when names mean nothing: the mean over categories exchanged at random, several times."""
    found = json.loads(results.read_text(encoding="utf-8"))
    ids = [category.id for category in dataset.categories]
    runs = []
    for seed in range(_PERMUTATIONS):
        order = np.random.default_rng(seed).permutation(len(ids))
        other = {ids[number]: ids[place] for number, place in enumerate(order)}
        exchanged = [{**item, "category_id": other[item["category_id"]]} for item in found]
        runs.append(evaluate_results(exchanged, dataset.annotations_path)["bbox"])
    return _mean(runs)


def _mean(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
