"""What a study file says, and the cells that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from cfmvit.data.photographs import PhotographsConfig
from cfmvit.data.scenes import ScenesConfig
from cfmvit.data.specs import resolve
from cfmvit.demo.presets import PRESETS
from cfmvit.detection import FinetuneConfig
from cfmvit.models.config import model_config
from cfmvit.pretrain import PretrainConfig
from cfmvit.training import format_config, load_config
from cfmvit.training.device import choose_device
from cfmvit.training.field_ranges import check, positive

Control = Literal["none", "no pretraining", "shuffled names", "oracle"]
Measure = Literal["regions", "pointing", "locality", "retrieval", "detection", "forgetting"]

# The study sets them: data and models lie where it puts them.
_FIXED = {
    f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("data", "model", "loop.seed")
} - {"pretrain.model"}
_FOLDER = Path(__file__).parent / "studies"


@dataclass
class Settings:
    """Everything that a cell's figures depend on, except its measures.

    Attributes:
        data: what is trained on, the same for every seed: made ``scenes``, or scenes of ``photographs``.
        measured: what the figures are of, without any training on it: ``scenes``, ``photographs``, or what
            ``cfmvit.data.open_detection`` and ``open_captions`` open, such as ``coco:DIR``; by default ``data``.
        scenes, photographs: how they are made.
        pretrain, finetune: whose ``data``, ``model`` and ``loop.seed`` the study sets.
        control: ``"no pretraining"`` leaves the weights fresh; ``"shuffled names"`` measures with the categories' names
            exchanged; ``"oracle"`` finetunes with the boxes of novel categories too.
    """

    data: Literal["scenes", "photographs"] = "scenes"
    measured: str = ""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    photographs: PhotographsConfig = field(default_factory=PhotographsConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    control: Control = "none"


@dataclass
class Study:
    """A study file.

    Attributes:
        title: heading of its table.
        question: what it asks, a sentence or two.
        preset: of the demo, ``quick``, ``default`` or ``full``: the settings that all cells start from.
        settings: changes of it for all cells, such as ``"pretrain.loop.steps=400"``.
        cells: by name, the changes that make each; none is the preset with ``settings``.
        reference: the cell of which the controls are made.
        seeds: how many; each cell is run with 0, 1, ...
        compare: pairs of cells whose difference is taken seed by seed.
        measures: what is measured. ``regions``: naming of true boxes; ``pointing``; ``locality``: what tokens tell of their own
            place; ``retrieval``; ``detection``: finetuning, then AP of the detector, of the frozen tower and of both;
            ``forgetting``: naming of true boxes by the finetuned tower.
        scales: sizes of the images of ``regions``, ``pointing`` and ``locality``, relative to those of pretraining.
    """

    title: str = ""
    question: str = ""
    cells: dict[str, list[str]] = field(default_factory=dict)
    reference: str = ""
    preset: Literal["quick", "default", "full"] = "default"
    settings: list[str] = field(default_factory=list)
    seeds: int = 3
    compare: tuple[tuple[str, str], ...] = ()
    measures: tuple[Measure, ...] = ("regions", "pointing", "retrieval")
    scales: tuple[float, ...] = (1.0, 2.0)

    def __post_init__(self) -> None:
        positive("", self, "seeds")
        check("cells", list(self.cells), bool(self.cells), "name a cell at least")
        for name, changes in self.cells.items():
            check(
                "cells", name, bool(name.strip()) and name.isprintable(), "have names that a table can show"
            )
            ok = isinstance(changes, list) and all(isinstance(change, str) for change in changes)
            check(f"cells.{name}", changes, ok, 'be a list of changes such as "pretrain.loop.steps=400"')
        controls = {"no pretraining", "shuffled names", "oracle"} & set(self.cells)
        check("cells", sorted(controls), not controls, "leave the controls' names to the study")
        check("reference", self.reference, self.reference in self.cells, f"be one of {', '.join(self.cells)}")
        known = [*self.cells, *self.controls()]
        for name in (name for pair in self.compare for name in pair):
            check("compare", name, name in known, f"hold names of {', '.join(known)}")
        check("measures", self.measures, bool(self.measures), "name one at least")
        check("scales", self.scales, bool(self.scales) and min(self.scales) > 0, "be positive")

    def controls(self) -> tuple[Control, ...]:
        """Return the controls that stand beside this study's cells."""
        return ("no pretraining", "shuffled names") + (("oracle",) if "detection" in self.measures else ())


@dataclass(frozen=True)
class Cell:
    """One run: a row of the table and a seed."""

    name: str
    seed: int
    settings: Settings


def shipped_studies() -> dict[str, Path]:
    """Return the studies that come with the package, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def load_study(place: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study.

    Args:
        place: the name of one that comes with the package, or a ``.toml`` or ``.json`` file.
        overrides: changes of the study (``"seeds=5"``), or of the settings of all its cells (``"pretrain.loop.steps=400"``).

    Raises:
        FileNotFoundError, ValueError: no such file, or a key or a value that can't be, or an override of what cells differ in;
            the message names the file and the key.
    """
    shipped = shipped_studies()
    if not Path(place).suffix and str(place) not in shipped:
        raise ValueError(f"study: it must be a file, or one of {', '.join(shipped)}, got {place}")
    of_cells = {item.name for item in fields(Settings)}
    own = [change for change in overrides if change.partition("=")[0].split(".")[0] not in of_cells]
    shared = [change for change in overrides if change not in own]
    try:
        study = load_config(Study, shipped.get(str(place), Path(place)), own)
        for change in shared:
            setters = [name for name, changes in study.cells.items() if _overlaps(change, changes)]
            rule = f"be left to the cells that set it, {', '.join(setters)}"  # whose names it would belie
            check(change.partition("=")[0], change, not setters, rule)
    except ValueError as error:
        raise ValueError(f"study {place}: {error}") from error
    study.settings = [*study.settings, *shared]
    return study


def _overlaps(change: str, others: Sequence[str]) -> bool:
    """Tell whether a change sets what one of others sets, or a table that holds it."""
    key, *keys = (f"{item.partition('=')[0]}." for item in (change, *others))
    return any(key.startswith(other) or other.startswith(key) for other in keys)


def study_cells(study: Study) -> Iterator[Cell]:
    """Yield the cells of a study, seed by seed, so that a broken-off one has every row.

    Raises:
        ValueError: settings that can't be; the message names the cell.
    """
    rows = {name: _settings(study, name, changes) for name, changes in study.cells.items()}
    for control in study.controls():
        changes = [*study.cells[study.reference], f"control={control}"]
        rows[control] = _settings(study, control, changes)
    for seed in range(study.seeds):
        for name, changes in rows.items():
            seeded = [f"{stage}.loop.seed={seed}" for stage in ("pretrain", "finetune")]
            yield Cell(name, seed, load_config(Settings, None, [*changes, *seeded]))


def _settings(study: Study, name: str, changes: Sequence[str]) -> list[str]:
    """Return a row's settings as changes of the defaults, once they have been found sound."""
    chosen = PRESETS[study.preset]
    start = format_config(Settings(scenes=chosen.scenes, pretrain=chosen.pretrain, finetune=chosen.finetune))
    every = [line.replace(" = ", "=", 1) for line in start.splitlines()] + [*study.settings, *changes]
    try:
        for change in [*study.settings, *changes]:
            fixed = change.partition("=")[0] in _FIXED
            check(change.partition("=")[0], change, not fixed, "be left to the study")
        for change in study.settings:
            check("control", change, not change.startswith("control="), "be a cell's alone")
        settings = load_config(Settings, None, every)
        used = {settings.data, settings.measured}
        if "scenes" in used:
            settings.scenes.check()
        if "photographs" in used:
            settings.photographs.check()
        for device in (settings.pretrain.device, settings.finetune.device):
            choose_device(device)
        model = model_config(settings.pretrain.model, **settings.pretrain.model_options)
        if {"detection", "forgetting"} & set(study.measures):
            given = settings.finetune.detector.image_size
            what = f"be a multiple of the patch size {model.patch_size}"
            check("finetune.detector.image_size", given, given % model.patch_size == 0, what)
        if settings.measured not in ("", "scenes", "photographs"):
            resolve(settings.measured, "val", "detection")
            if "retrieval" in study.measures:
                resolve(settings.measured, "val", "captions")
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"study: cell {name}: {error}") from error
    for scale in study.scales:
        side = scale * model.image_size
        if side % model.patch_size:
            raise ValueError(
                f"study: scales must make multiples of the patch size {model.patch_size} of {model.image_size}, got {scale:g}"
            )
    return every
