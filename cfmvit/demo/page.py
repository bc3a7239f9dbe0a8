"""The demo's report: pictures first, then what they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import cfmvit
from cfmvit._machine import device_name
from cfmvit.data import open_detection
from cfmvit.evaluation import imagined_tokens, value_tokens
from cfmvit.report import Card, Report, bars, curves, overlay, similarity_map
from cfmvit.training import format_config

if TYPE_CHECKING:
    from pathlib import Path

    from markupsafe import Markup

    from cfmvit.demo.outcome import Outcome

_PICTURES = 6


def write_page(outcome: Outcome) -> Path:
    """Draw everything and write ``report.html``."""
    novel_ap = {name: row["AP50_novel"] for name, row in outcome.metrics.items()}
    minutes = sum(outcome.seconds.values()) / 60
    report = Report(
        "Detecting what no box ever showed",
        "A CFM-ViT was pretrained on images with captions, then a detector was finetuned on boxes of base categories only. "
        "Below it finds novel categories, named by words alone.",
        [
            f"cfmvit {cfmvit.__version__}",
            f"torch {torch.__version__}",
            device_name(outcome.model.device),
            f"{minutes:.1f} min in all",
        ],
    )
    report.cards(
        [
            Card(
                _percent(novel_ap["pretrained"]),
                "novel AP50, pretrained",
                "categories without a single box",
                novel=True,
            ),
            Card(
                _percent(novel_ap["from scratch"]),
                "novel AP50, from scratch",
                "same detector, same finetuning",
            ),
            Card(
                _percent(novel_ap["shuffled names"]),
                "novel AP50, shuffled names",
                "same boxes, names exchanged: chance",
            ),
            Card(
                _percent(outcome.metrics["pretrained"]["AP50_base"]),
                "base AP50, pretrained",
                "categories with boxes",
            ),
        ]
    )
    report.section(
        "Novel categories, found",
        "Images of the validation split; the detector was given all category names.",
    )
    report.legend().grid(_overlays(outcome), cell=300)
    report.section(
        "Where the words are",
        "The cosine of an image's tokens with a text shows where the model believes that thing to be, from pretraining alone, "
        "before any box. The image is encoded whole; in the last block each token keeps its own value. In the last picture of a "
        "row three quarters of the tokens were hidden, and the decoder predicted their features.",
    )
    for row in _maps(outcome):
        report.grid(row, cell=260)
    report.table(
        outcome.pointing,
        caption="How often a map's maximum lies in the box of what was named, x 100. Chance is that of a token at random; "
        "with names shuffled, of another object's name: objects stand out whatever is asked for.",
        highlight=["hit"],
    )
    report.section("With and without pretraining")
    report.svg(
        _comparison(outcome),
        caption="AP50 by group, and zero-shot accuracy of true boxes before any finetuning.",
    )
    report.table(
        outcome.metrics,
        caption="Average precision x 100, as LVIS computes it.",
        highlight=["APr", "AP50_novel"],
    )
    report.section("Training")
    runs = {
        name: outcome.folder / f"finetune-{name.replace(' ', '-')}" / "metrics.jsonl"
        for name in ("pretrained", "from scratch")
    }
    pretraining = outcome.folder / "pretrain" / "metrics.jsonl"
    report.svg(
        curves(
            pretraining, ("contrastive", "reconstruction"), title="pretraining losses", log=True, width=560
        ),
        curves(runs, ("class",), title="finetuning: classification loss", width=560),
    )
    report.section("How it was made")
    report.facts({f"{stage}, s": f"{value:.0f}" for stage, value in outcome.seconds.items()})
    report.details("pretraining configuration", format_config(outcome.preset.pretrain))
    report.details("finetuning configuration", format_config(outcome.preset.finetune))
    report.details("data configuration", format_config(outcome.preset.scenes))
    return report.write(outcome.folder / "report.html")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _dataset(outcome: Outcome) -> Any:
    size = outcome.preset.finetune.detector.image_size
    return open_detection(outcome.data, split="val", base_only=False, image_size=size)


def _overlays(outcome: Outcome) -> list[tuple[Any, str]]:
    """Draw images with novel objects, those first in which most of these were found and fewest names are wrong."""
    dataset = _dataset(outcome)
    names = [category.name for category in dataset.categories]
    novel = {category.name for category in dataset.categories if category.novel}
    vocabulary = outcome.detector.vocabulary(names)
    drawn: list[tuple[tuple[int, int], Any, str]] = []
    for number in range(len(dataset)):
        sample = dataset.load(number, np.random.default_rng(0))
        truth = [names[label] for label in sample["labels"].tolist()]
        if not novel & set(truth):
            continue
        found = outcome.detector.predict(sample["image"], vocabulary, novel=novel).salient()
        order = (len(novel & set(truth) & set(found.labels)), -len(set(found.labels) - set(truth)))
        caption = "there: " + ", ".join(f"★ {name}" if name in novel else name for name in truth)
        drawn.append((order, overlay(sample["image"], found, novel), caption))
    drawn.sort(key=lambda item: item[0], reverse=True)
    return [(picture, caption) for _, picture, caption in drawn[:_PICTURES]]


def _maps(outcome: Outcome) -> list[list[tuple[Any, str]]]:
    """Draw three images, each with where its tokens resemble two of its objects, and where the decoder's resemble the first."""
    model, dataset = outcome.model, _dataset(outcome)
    names = [category.name for category in dataset.categories]
    rows: list[list[tuple[Any, str]]] = []
    for number in range(len(dataset)):
        sample = dataset.load(number, np.random.default_rng(0))
        labels = sample["labels"].unique().tolist()
        if len(labels) < 2:
            continue
        image = sample["image"]
        grid = (image.shape[1] // model.config.patch_size, image.shape[2] // model.config.patch_size)
        pixels = image[None].to(model.device)
        with torch.no_grad():
            seen, imagined = value_tokens(model, pixels)[0], imagined_tokens(model, pixels, number)[0]
            texts = model.encode_text([f"a photo of a {names[label]}" for label in labels[:2]]).cpu()
        shown = [(seen, 0, "{}"), (seen, 1, "{}"), (imagined, 0, "{}, imagined by the decoder")]
        maps = [
            (similarity_map(image, tokens.cpu(), texts[which], grid), caption.format(names[labels[which]]))
            for tokens, which, caption in shown
        ]
        rows.append([(image, "the image"), *maps])
        if len(rows) == 3:
            break
    return rows


def _comparison(outcome: Outcome) -> Markup:
    groups: dict[str, Mapping[str, float]] = {
        title: {name: row[metric] for name, row in outcome.metrics.items() if name != "shuffled names"}
        for title, metric in (("novel AP50", "AP50_novel"), ("base AP50", "AP50_base"))
    }
    chance = {
        title: outcome.metrics["shuffled names"][metric]
        for title, metric in (("novel AP50", "AP50_novel"), ("base AP50", "AP50_base"))
    }
    groups["zero-shot regions"] = {name: row["top1"] for name, row in outcome.regions.items()}
    chance["zero-shot regions"] = 1 / len(_dataset(outcome).categories)
    return bars(groups, title="What pretraining is worth", chance=chance)
