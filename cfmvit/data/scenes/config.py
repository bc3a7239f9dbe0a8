"""Configuration of the embedded scenes."""

from __future__ import annotations

from dataclasses import dataclass, field

from cfmvit.data.scenes.drawing import sprite_size
from cfmvit.data.scenes.vocabulary import COLOURS, SHAPES, TEXTURES


@dataclass
class SplitConfig:
    """One split.

    Attributes:
        images: number of images; 0 leaves the split empty.
        size: side of the square images in pixels.
        objects: fewest and most objects of an image, drawn uniformly.
        scale: smallest and largest side of an object in pixels, drawn log-uniformly.
        tail: exponent of the category frequencies; 0 makes all categories equally frequent, 1 is Zipf's law.
    """

    images: int
    size: int
    objects: tuple[int, int] = (1, 2)
    scale: tuple[float, float] = (24.0, 48.0)
    tail: float = 0.0


@dataclass
class ScenesConfig:
    """The scenes are a pure function of this.

    Attributes:
        colours, textures, shapes: how many words of each list are used; categories are all their combinations.
        pretrain: images with captions; novel categories included.
        train: images with boxes of base categories.
        val: images with every box, novel ones too, and captions.
        novel_in_train: let novel objects stand in training images; their boxes are not annotated.
        novel_boxes: let them stand there as often as others, with their boxes: what an oracle is trained on.
        min_visible: smallest visible fraction of an object behind others.
        quality: JPEG quality, without chroma subsampling.
    """

    seed: int = 0
    colours: int = 6
    textures: int = 7
    shapes: int = 3
    pretrain: SplitConfig = field(default_factory=lambda: SplitConfig(images=6000, size=64))
    train: SplitConfig = field(
        default_factory=lambda: SplitConfig(images=600, size=160, objects=(2, 4), scale=(24, 64), tail=0.8)
    )
    val: SplitConfig = field(
        default_factory=lambda: SplitConfig(images=100, size=160, objects=(2, 4), scale=(24, 64))
    )
    novel_in_train: bool = True
    novel_boxes: bool = False
    min_visible: float = 0.6
    quality: int = 93

    def check(self) -> None:
        """Raise ``ValueError`` naming the field that can't be."""
        for name, words in (("colours", COLOURS), ("textures", TEXTURES), ("shapes", SHAPES)):
            count = getattr(self, name)
            if not 1 <= count <= len(words):
                raise ValueError(f"make_scenes: {name} must lie in 1 .. {len(words)}, got {count}")
        if sum(count > 1 for count in (self.colours, self.textures, self.shapes)) < 2:
            raise ValueError(
                "make_scenes: two of colours, textures, shapes must be at least 2, for novel categories made of words "
                f"that base categories have, got {self.colours}, {self.textures}, {self.shapes}"
            )
        if not 0 < self.min_visible <= 1:
            raise ValueError(f"make_scenes: min_visible must lie in (0, 1], got {self.min_visible}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"make_scenes: quality must lie in 1 .. 100, got {self.quality}")
        for name in ("pretrain", "train", "val"):
            _check_split(name, getattr(self, name), self.colours * self.textures * self.shapes)


def _check_split(name: str, split: SplitConfig, categories: int) -> None:
    if split.images < 0:
        raise ValueError(f"make_scenes: {name}.images must not be negative, got {split.images}")
    if split.size < 16:
        raise ValueError(f"make_scenes: {name}.size must be at least 16, got {split.size}")
    fewest, most = split.objects
    if not 1 <= fewest <= most <= categories:
        raise ValueError(
            f"make_scenes: {name}.objects must rise within 1 .. {categories}, got {split.objects}"
        )
    smallest, largest = split.scale
    if not 8 <= smallest <= largest or sprite_size(largest) > split.size:
        raise ValueError(
            f"make_scenes: {name}.scale must rise from at least 8 to what fits into {split.size} px, got {split.scale}"
        )
    if most * smallest**2 > split.size**2 / 2:
        raise ValueError(
            f"make_scenes: {name}: {most} objects of {smallest} px must cover at most half of a {split.size} px image"
        )
    if split.tail < 0:
        raise ValueError(f"make_scenes: {name}.tail must not be negative, got {split.tail}")
