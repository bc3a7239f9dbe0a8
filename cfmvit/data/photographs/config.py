"""Configuration of scenes of photographs."""

from __future__ import annotations

from dataclasses import dataclass, field

from cfmvit.data.scenes.config import SplitConfig


@dataclass
class PhotographsConfig:
    """The data are a pure function of this and of the shards.

    Attributes:
        source: ``shards:DIR`` of photographs with one box each, ``train-*.tar``, ``val-*.tar`` and ``categories.json``, as
            ``cfmvit.data.open_detection`` reads them.
        size: side of a photograph as it is pretrained on, in pixels.
        pretrain: how many photographs are pretrained on, with captions; of novel categories too.
        train: scenes with boxes of base categories; ``objects`` are photographs, ``scale`` is the side of one in pixels.
        val: scenes of other photographs, with every box, and captions.
        novel_boxes: let photographs of novel categories stand in ``train`` too, with their boxes: what an oracle is trained on.
        quality: JPEG quality, without chroma subsampling.
    """

    source: str = ""
    seed: int = 0
    size: int = 64
    pretrain: int = 16_000
    train: SplitConfig = field(
        default_factory=lambda: SplitConfig(images=2000, size=256, objects=(1, 6), scale=(19, 192))
    )
    val: SplitConfig = field(
        default_factory=lambda: SplitConfig(images=300, size=256, objects=(1, 6), scale=(19, 192))
    )
    novel_boxes: bool = False
    quality: int = 93

    def check(self) -> None:
        """Raise ``ValueError`` naming the field that can't be."""
        if not self.source.startswith("shards:"):
            raise ValueError(f"photographs: source must look like shards:DIR, got {self.source!r}")
        for name, least in (("size", 16), ("pretrain", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"photographs: {name} must be at least {least}, got {getattr(self, name)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"photographs: quality must lie in 1 .. 100, got {self.quality}")
        for name in ("train", "val"):
            split: SplitConfig = getattr(self, name)
            if split.images < 0 or split.tail < 0:
                raise ValueError(f"photographs: {name}.images and .tail must not be negative, got {split}")
            if not 1 <= split.objects[0] <= split.objects[1]:
                raise ValueError(
                    f"photographs: {name}.objects must rise from at least 1, got {split.objects}"
                )
            if not 8 <= split.scale[0] <= split.scale[1] <= split.size:
                raise ValueError(
                    f"photographs: {name}.scale must rise from at least 8 to at most its size {split.size}, got {split.scale}"
                )
