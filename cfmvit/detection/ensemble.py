"""Scores of proposals: the detector's own and the frozen backbone's, combined."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from cfmvit.detection.config import ScoreConfig
from cfmvit.detection.result import ScoreParts
from cfmvit.ops import pool_regions, score_regions

Part = Literal["ensemble", "detector", "frozen"]


def scored_by(config: ScoreConfig, part: Part) -> ScoreConfig:
    """Return the scores of one part alone: the detector's ``p * centerness ** 3`` or the frozen tower's ``z * centerness ** 3``.

    The letters are those of ``region_scores``; ``"ensemble"`` is what the configuration says.
    """
    if part == "detector":
        return replace(config, vlm=False)
    if part == "frozen":
        return replace(config, vlm=True, base_weight=1.0, novel_weight=1.0, renormalize=False)
    return config


def frozen_embeddings(
    tokens: Tensor, grid: tuple[int, int], proposals: list[Tensor], patch_size: int, samples: int
) -> Tensor:
    """Return the mean of the frozen tower's last map over each proposal, (R, C).

    Args:
        tokens: (B, h * w, C).
        grid: (h, w).
        proposals: (K_i, 4) xyxy an image, in pixels.
        samples: points along each side of a proposal, one a bin.
    """
    return pool_regions(
        tokens, proposals, grid_size=grid, spatial_scale=1 / patch_size, output_size=samples, sampling_ratio=1
    )


def region_scores(
    embeds: Tensor,
    text: Tensor,
    temperature: Tensor,
    centers: Tensor,
    base: Tensor,
    frozen: Tensor | None,
    config: ScoreConfig,
) -> Tensor:
    """Return (R, n) scores of labels.

    With detector probabilities p and frozen probabilities z, both softmaxes over labels and background, a label's score
    is ``p ** (1 - w) * z ** w * centerness ** 3``; w is smaller for base labels, which the detector knows better.

    Args:
        embeds: (R, C) region embeddings.
        text: (1 + n, C), background first.
        temperature: ``t``, 0-d.
        centers: (R,) centerness of the proposals.
        base: (n,) bool.
        frozen: (R, C) from ``frozen_embeddings``; None scores with the detector alone.
    """
    return score_regions(
        embeds,
        text,
        vlm_embeds=frozen,
        base=base,
        temperature=0.01 * temperature,
        vlm_temperature=config.vlm_temperature,
        base_weight=config.base_weight,
        novel_weight=config.novel_weight,
        renormalize=config.renormalize,
        objectness=centers,
        objectness_power=config.center_power,
    )


def score_parts(
    embeds: Tensor,
    text: Tensor,
    temperature: Tensor,
    centers: Tensor,
    frozen: Tensor | None,
    config: ScoreConfig,
    labels: Tensor,
) -> ScoreParts:
    """Return, on the CPU, what the scores of detections are made of.

    Args:
        embeds, text, temperature, centers, frozen: as for ``region_scores``, of n detections.
        labels: (n,) int64, each one's label.
    """

    def of_label(rows: Tensor, temperature: Tensor | float) -> Tensor:
        scores = score_regions(rows, text, temperature=temperature)
        return scores.gather(1, labels[:, None])[:, 0].cpu()

    alone = None if frozen is None else of_label(frozen, config.vlm_temperature)
    return ScoreParts(of_label(embeds, 0.01 * temperature), alone, centers.float().cpu())
