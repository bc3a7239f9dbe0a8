"""Words of the scenes, and the categories that they make."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

# Ordered so that the first few of each list are the easiest to tell apart.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "blue": (38, 84, 214),
    "yellow": (250, 210, 30),
    "green": (40, 150, 62),
    "purple": (132, 48, 170),
    "orange": (246, 128, 20),
    "cyan": (32, 196, 214),
    "pink": (250, 130, 184),
    "brown": (122, 74, 36),
}
# Patterns are white or black, which no colour above is.
TEXTURES = (
    "plain",
    "white-striped",
    "black-dotted",
    "white-checkered",
    "black-striped",
    "white-dotted",
    "black-checkered",
)
SHAPES = (
    "circle",
    "ring",
    "cross",
    "star",
    "square",
    "triangle",
    "heart",
    "crescent",
    "arrow",
    "hexagon",
    "diamond",
    "drop",
    "bolt",
    "flower",
)


@dataclass(frozen=True)
class Composition:
    """One category: its 1-based id, its three words, and whether it is novel."""

    id: int
    colour: str
    texture: str
    shape: str
    novel: bool

    @property
    def name(self) -> str:
        """The three words."""
        return f"{self.colour} {self.texture} {self.shape}"


def compositions(colours: int, textures: int, shapes: int, seed: int) -> list[Composition]:
    """Return every combination of the first words; a third is novel.

    Novel are the triples whose ranks (in an order that depends on the seed) sum to 2 modulo 3. So the novel ones spread
    evenly: every word is seen in base categories, and so is nearly every pair of words.
    """
    rng = np.random.default_rng((seed, 0))
    words = (list(COLOURS)[:colours], list(TEXTURES)[:textures], list(SHAPES)[:shapes])
    ranks = [dict(zip(group, rng.permutation(len(group)).tolist())) for group in words]
    return [
        Composition(number, *triple, novel=sum(rank[word] for rank, word in zip(ranks, triple)) % 3 == 2)
        for number, triple in enumerate(product(*words), start=1)
    ]
