"""Run a study cell by cell."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cfmvit._io import atomic_write, clean
from cfmvit._lock import HeldError, held
from cfmvit._machine import device_name
from cfmvit.progress import progress
from cfmvit.study.config import Cell, Study, load_study, study_cells
from cfmvit.study.measures import measure
from cfmvit.study.plots import write_plots
from cfmvit.study.record import Record
from cfmvit.study.stages import Stages, key_of
from cfmvit.study.tables import markdown
from cfmvit.training.device import choose_device

_LOCK = ".study.lock"


def study(place: str | Path, output: Path = Path("runs/study"), overrides: Sequence[str] = ()) -> Path:
    """Run a study, or go on with it, and return the path of its table.

    Each cell's figures are written once it is done, whole or not at all, and the tables after each: a study that was broken off
    goes on with the cell that it was at, from that cell's last checkpoint, and comes to the same tables. Data, pretrained models
    and detectors lie in folders named by what they depend on, so that cells, seeds and studies share them. A cell that fails is
    recorded with its error, and its log says where it failed; the next run tries it again.

    Args:
        place: the name of a study that comes with the package, or a file.
        output: folder of all studies; this one's tables are ``NAME.md``, ``NAME.json`` and ``NAME-*.svg`` in it.
        overrides: changes of the study, or of all its cells' settings; see ``load_study``.

    Raises:
        FileNotFoundError, ValueError: a study that can't be; the message names the key.
        RuntimeError: another process runs a study in ``output``; or cells failed, once all others are done.
    """
    plan = load_study(place, overrides)
    cells = list(study_cells(plan))
    record = Record(Path(place).stem, plan)
    (output / "cells").mkdir(parents=True, exist_ok=True)
    try:
        with held(output / _LOCK):
            for folder in (output, output / "cells", output / "stages"):
                clean(folder)
            _go_through(cells, record, output)
    except HeldError as holder:
        raise RuntimeError(f"study: {holder} is running in {output}; --output names another folder") from None
    table = output / f"{record.name}.md"
    print(table.read_text(encoding="utf-8"))
    if failed := record.errors():
        raise RuntimeError(
            f"study: {len(failed)} of {len(cells)} cells failed, the first is {failed[0]}; the same command tries them again"
        )
    return table


def _go_through(cells: Sequence[Cell], record: Record, output: Path) -> None:
    """Measure the cells that are not, and write the tables after each; those that are there say nothing of the time left."""
    known = [_known(cell, record.study, output) for cell in cells]
    there = sum(done is not None for done in known)
    bar = progress(len(cells), desc=record.name, unit="cell", initial=there)
    try:
        for cell, done in zip(cells, known):
            if done is None:
                bar.set_postfix_str(f"{cell.name}, seed {cell.seed}")
                # Another cell of the same settings may have been measured meanwhile.
                done = _known(cell, record.study, output) or _measured(cell, record.study, output)
                bar.update()
            record.add(cell, done)
            _write(record, output)
    finally:
        bar.close()


def _path(cell: Cell, plan: Study, output: Path) -> Path:
    key = key_of(asdict(cell.settings), cell.seed, plan.measures, plan.scales)
    return output / "cells" / f"{key}.json"


def _known(cell: Cell, plan: Study, output: Path) -> dict[str, Any] | None:
    """Return a cell's figures where they are there; the cell that they were made for may have another name."""
    path = _path(cell, plan, output)
    done = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"error": "not begun"}
    return None if "error" in done else {**done, "cell": cell.name}


def _measured(cell: Cell, plan: Study, output: Path) -> dict[str, Any]:
    """Make a cell, and return its figures or its error."""
    path = _path(cell, plan, output)
    done: dict[str, Any]
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
    """Let what a cell's stages print, and where they failed, go to its log: a study has one line of progress."""
    with path.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise


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
