"""Run a study cell by cell."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cfmvit._io import atomic_write, clean
from cfmvit._machine import device_name
from cfmvit.progress import progress
from cfmvit.study.config import Cell, Study, load_study, study_cells
from cfmvit.study.measures import measure
from cfmvit.study.plots import write_plots
from cfmvit.study.record import Record
from cfmvit.study.stages import Stages, key_of
from cfmvit.study.tables import markdown
from cfmvit.training.device import choose_device


def study(place: str | Path, output: Path = Path("runs/study"), overrides: Sequence[str] = ()) -> Path:
    """Run a study, or go on with it, and return the path of its table.

    Each cell's figures are written once it is done, whole or not at all, and the tables after each: a study that was broken off
    goes on with the cell that it was at, from that cell's last checkpoint, and comes to the same tables. Data, pretrained models
    and detectors lie in folders named by what they depend on, so that cells, seeds and studies share them. A cell that fails is
    recorded with its error; the next run tries it again.

    Args:
        place: the name of a study that comes with the package, or a file.
        output: folder of all studies; this one's tables are ``NAME.md``, ``NAME.json`` and ``NAME-*.svg`` in it.
        overrides: changes of the study, or of all its cells' settings; see ``load_study``.

    Raises:
        FileNotFoundError, ValueError: a study that can't be; the message names the key.
        RuntimeError: cells failed, once all others are done.
    """
    plan = load_study(place, overrides)
    cells = list(study_cells(plan))
    record = Record(Path(place).stem, plan)
    (output / "cells").mkdir(parents=True, exist_ok=True)
    clean(output / "cells")
    bar = progress(len(cells), desc=record.name, unit="cell")
    failed = []
    try:
        for cell in cells:
            bar.set_postfix_str(f"{cell.name}, seed {cell.seed}")
            done = _cell(cell, plan, output)
            record.add(cell, done)
            if "error" in done:
                failed.append(f"{cell.name}, seed {cell.seed}: {done['error']}")
            _write(record, output)
            bar.update()
    finally:
        bar.close()
    table = output / f"{record.name}.md"
    print(table.read_text(encoding="utf-8"))
    if failed:
        raise RuntimeError(
            f"study: {len(failed)} of {len(cells)} cells failed, the first is {failed[0]}; the same command tries them again"
        )
    return table


def _cell(cell: Cell, plan: Study, output: Path) -> dict[str, Any]:
    """Return a cell's figures, from its file where they are there."""
    key = key_of(asdict(cell.settings), cell.seed, plan.measures, plan.scales)
    path = output / "cells" / f"{key}.json"
    if path.is_file():
        done = json.loads(path.read_text(encoding="utf-8"))
        if "error" not in done:
            return done
    try:
        with _printing_to(path.with_suffix(".log")):
            found = measure(plan, Stages(cell, output / "stages"))
        done = {"values": _plain(found.values), "chance": _plain(found.chance)}
    except Exception as error:  # whatever it is, the other cells can go on
        done = {"error": f"{type(error).__name__}: {error}"}
    done = {"cell": cell.name, "seed": cell.seed, **done, **_machine(cell)}
    with atomic_write(path, "w") as file:
        json.dump(done, file, indent=1, allow_nan=False)
    return done


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Let what a cell's stages print go to its log: a study has one line of progress."""
    with path.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        yield


def _machine(cell: Cell) -> dict[str, str]:
    device = choose_device(cell.settings.pretrain.device)
    return {"device": device_name(device), "torch": torch.__version__}


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a figure that is not defined is null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _write(record: Record, output: Path) -> None:
    with atomic_write(output / f"{record.name}.json", "w") as file:
        json.dump(record.to_dict(), file, indent=1, allow_nan=False)
    with atomic_write(output / f"{record.name}.md", "w") as file:
        file.write(markdown(record))
    write_plots(record, output)
