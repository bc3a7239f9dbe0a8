"""The figures of a cell, each a fraction, beside what chance comes to."""

from __future__ import annotations

import copy
import json
import math
import statistics
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cfmvit.data import open_captions, open_detection
from cfmvit.data.detection import DetectionDataset
from cfmvit.detection import predict_dataset
from cfmvit.detection.ensemble import Part, scored_by
from cfmvit.evaluation import (
    class_embeddings,
    classify_regions,
    dense_tokens,
    evaluate_results,
    evaluate_retrieval,
    imagined_tokens,
    locality,
    pointing_accuracy,
    value_tokens,
)
from cfmvit.evaluation.pointing import Tokens
from cfmvit.models import CFMViT
from cfmvit.study.config import Study
from cfmvit.study.stages import Stages
from cfmvit.training.metrics import read_metrics


@dataclass
class Figures:
    """What was measured of a cell.

    Attributes:
        values: by name; fractions, but for ``"step, ms"``.
        chance: what guessing comes to, of those that have it.
    """

    values: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float, chance: float | None = None) -> None:
        """Note one figure."""
        self.values[name] = value
        if chance is not None:
            self.chance[name] = chance


def measure(study: Study, stages: Stages) -> Figures:
    """Make what a cell needs, and measure it."""
    found = Figures()
    if stages.cell.settings.control != "oracle":  # which differs by its finetuning alone
        for scale in study.scales:
            _zero_shot(found, study, stages, scale)
        if "retrieval" in study.measures:
            _retrieval(found, stages)
    if "detection" in study.measures:
        _detection(found, stages)
    if "forgetting" in study.measures and stages.cell.settings.control != "oracle":
        _forgetting(found, study, stages)
    settings = stages.cell.settings
    rates = [record["images_per_s"] for record in read_metrics(stages.pretraining / "metrics.jsonl")]
    if rates and settings.control == "none":
        batch = settings.pretrain.batch_size
        found.add("step, ms", 1000 * batch / statistics.median(rates))
    return found


def _zero_shot(found: Figures, study: Study, stages: Stages, scale: float) -> None:
    model, dataset = stages.model, _boxes(stages, round(scale * stages.image_size))
    classes = _classes(stages, model, dataset)
    if "regions" in study.measures:
        found.add(f"regions {scale:g}x", classify_regions(model, dataset, classes)["top1"], 1 / len(classes))
    kinds: dict[str, Tokens] = {
        "": lambda images, _: dense_tokens(model, images),
        ", values": lambda images, _: value_tokens(model, images),
    }
    if model.config.reconstruction == "feature":  # else what a decoder predicts is not of the joint space
        kinds[", decoder"] = lambda images, number: imagined_tokens(model, images, number)
    if "pointing" in study.measures:
        for kind, tokens in kinds.items():
            shown = pointing_accuracy(model, dataset, classes, tokens)
            found.add(f"pointing {scale:g}x{kind}", shown["hit"], shown["chance"])
    if "locality" in study.measures:
        shares = locality(model, dataset, kinds[""], kinds.get(", decoder"))
        found.add(f"locality {scale:g}x", shares["within"])
        if "agreement" in shares:
            found.add(f"locality {scale:g}x, decoder", shares["agreement"])


def _retrieval(found: Figures, stages: Stages) -> None:
    """Captions and images of the validation split, at the size of pretraining images."""
    dataset = open_captions(stages.measured, split="val", image_size=stages.image_size, augment=False)
    samples = [dataset.load_whole(index) for index in range(len(dataset))]
    pairs = ((image, samples[other][1]) for (image, _), other in zip(samples, _order(stages, len(samples))))
    recall = evaluate_retrieval(stages.model, pairs, ks=(1,))
    for name in ("image to text", "text to image"):
        found.add(f"{name} R@1", recall[f"{name.replace(' ', '_')}_R@1"], 1 / len(dataset))


def _detection(found: Figures, stages: Stages) -> None:
    """AP50 of the detector alone, of the frozen tower alone and of both, over one finetuning."""
    detector = stages.detector
    scores = detector.config.scores
    dataset = _boxes(stages, detector.config.image_size)
    ids = [category.id for category in dataset.categories]
    novel = {category.id for category in dataset.categories if category.novel}
    other = {number: ids[place] for number, place in zip(ids, _order(stages, len(ids)))}
    ways: tuple[Part, ...] = ("detector", "frozen", "ensemble")
    for way in ways:
        detector.config.scores = scored_by(scores, way)
        path = predict_dataset(detector, dataset, stages.finetuning / way, masks=False, overwrite=True)
        results = json.loads(path.read_text(encoding="utf-8"))
        results = [{**item, "category_id": other[item["category_id"]]} for item in results]
        shown = evaluate_results(
            results, dataset.annotations_path, base_ids=set(ids) - novel, novel_ids=novel
        )["bbox"]
        for group in ("novel", "base"):
            found.add(f"AP50 {group}, {way}", shown.get(f"AP50_{group}", math.nan))
    detector.config.scores = scores


def _forgetting(found: Figures, study: Study, stages: Stages) -> None:
    """Name true boxes by the finetuned tower as by the frozen one, which is what ``regions`` measures."""
    model = copy.deepcopy(stages.model)
    if stages.detector.visual is not None:  # else it was frozen, and both are one
        model.visual.load_state_dict(stages.detector.visual.state_dict())
    for scale in study.scales:
        dataset = _boxes(stages, round(scale * stages.image_size))
        classes = _classes(stages, model, dataset)
        after = classify_regions(model, dataset, classes)["top1"]
        found.add(f"regions {scale:g}x, finetuned", after, 1 / len(classes))


def _boxes(stages: Stages, image_size: int) -> DetectionDataset:
    return open_detection(stages.measured, split="val", base_only=False, image_size=image_size)


def _classes(stages: Stages, model: CFMViT, dataset: DetectionDataset) -> Tensor:
    names = [category.name for category in dataset.categories]
    with torch.no_grad():
        classes = class_embeddings(model, names, stages.cell.settings.finetune.detector.templates)
    return classes[_order(stages, len(classes))]


def _order(stages: Stages, count: int) -> list[int]:
    """Return whose name each thing has: its own, or where names are shuffled another's, by the seed."""
    if stages.cell.settings.control != "shuffled names":
        return list(range(count))
    return np.random.default_rng(stages.cell.seed).permutation(count).tolist()
