"""What a study has come to so far, as its json file holds it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from cfmvit.study.config import Cell, Study

# Student's t, 97.5 %, by degrees of freedom from 1; beyond the last one it is taken for that, which is wider than it need be.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


class Spread(NamedTuple):
    """Figures of several seeds.

    Attributes:
        mean: NaN of none.
        deviation: the sample's standard deviation; NaN of fewer than two.
        seeds: how many there are.
    """

    mean: float
    deviation: float
    seeds: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.seeds) if self.seeds else math.nan

    @property
    def margin(self) -> float:
        """Half the width of the mean's 95 % interval, by Student's t."""
        return self.error * _T[min(self.seeds - 1, len(_T)) - 1] if self.seeds > 1 else math.nan


@dataclass
class Record:
    """A study's figures: by cell, then seed, what ``run`` has written of that cell."""

    name: str
    study: Study
    cells: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    def add(self, cell: Cell, done: dict[str, Any]) -> None:
        """Note what came of a cell."""
        self.cells.setdefault(cell.name, {})[cell.seed] = done

    def names(self) -> list[str]:
        """Return the names of all figures, in the order in which they were measured."""
        return list(
            dict.fromkeys(
                n for seeds in self.cells.values() for d in seeds.values() for n in d.get("values", {})
            )
        )

    def figures(self, cell: str, name: str) -> dict[int, float]:
        """Return a figure of a cell by seed, where it is defined."""
        values = {seed: done.get("values", {}).get(name) for seed, done in self.cells.get(cell, {}).items()}
        return {seed: value for seed, value in values.items() if value is not None}

    def measures(self, cell: str, names: Collection[str]) -> bool:
        """Tell whether any of these figures is asked of a cell; of one that failed all may be."""
        values = [done.get("values", {}) for done in self.cells[cell].values()]
        return any(not found or not found.keys().isdisjoint(names) for found in values)

    def spread(self, cell: str, name: str) -> Spread:
        """Return mean and deviation of a cell's figure over its seeds."""
        return spread(self.figures(cell, name).values())

    def difference(self, cell: str, other: str, name: str) -> Spread:
        """Return mean and deviation of the difference of two cells' figures, taken seed by seed."""
        ours, theirs = self.figures(cell, name), self.figures(other, name)
        return spread(ours[seed] - theirs[seed] for seed in ours if seed in theirs)

    def chance(self, cell: str, name: str) -> float:
        """Return what guessing comes to on a cell's data; NaN where that is not known."""
        known = (done.get("chance", {}).get(name) for done in self.cells.get(cell, {}).values())
        return next((value for value in known if value is not None), math.nan)

    def errors(self) -> list[str]:
        """Return a line for each cell that failed."""
        return [
            f"{name}, seed {seed}: {done['error']}"
            for name, seeds in self.cells.items()
            for seed, done in seeds.items()
            if "error" in done
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, of which ``from_dict`` makes the record again."""
        return {"name": self.name, "study": asdict(self.study), "cells": self.cells}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Record:
        """Make a record of what ``to_dict`` returned, once it has gone through json."""
        cells = {
            name: {int(seed): done for seed, done in seeds.items()}
            for name, seeds in content["cells"].items()
        }
        return cls(content["name"], Study(**content["study"]), cells)


def spread(values: Iterable[float]) -> Spread:
    """Return mean and deviation of some figures."""
    known = list(values)
    mean = statistics.fmean(known) if known else math.nan
    return Spread(mean, statistics.stdev(known) if len(known) > 1 else math.nan, len(known))
