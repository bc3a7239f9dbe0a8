"""What a demo run produced: the run fills it, the page draws it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cfmvit.demo.presets import Preset
from cfmvit.detection import Detector
from cfmvit.models import CFMViT


@dataclass
class Outcome:
    """What a demo run produced.

    Attributes:
        metrics: AP by model, then metric: ``"pretrained"``, ``"from scratch"``.
        regions: zero-shot region accuracy by model, before any box was seen.
        pointing: how often the maximum of a similarity map lies in the named box, by what made the map.
        categories: how many there are, ``"all"`` and ``"novel"``.
        seconds: wall time by stage.
    """

    preset: Preset
    folder: Path
    data: str
    detector: Detector
    model: CFMViT
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    regions: dict[str, dict[str, float]] = field(default_factory=dict)
    pointing: dict[str, dict[str, float]] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
