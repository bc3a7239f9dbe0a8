"""A study's tables in markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cfmvit.study.record import Record, Spread

STEP = "step, ms"
_COLUMNS = 9  # of a table


def markdown(record: Record) -> str:
    """Return a study's tables: mean and spread of each cell, differences, what failed."""
    study, names = record.study, record.names()
    rows = [row for row in (*study.cells, *study.controls()) if row in record.cells]
    parts = [f"# {study.title}", study.question, _seeds(record)]
    for some in _tables(names):
        told = [row for row in rows if record.measures(row, some)]
        body = [[row, *(_spread(record.spread(row, name), name) for name in some)] for row in told]
        body.append(["chance", *(_chance(record, name) for name in some)])
        parts.append(_table(["", *some], body))
    shown = [name for name in names if any(record.difference(*pair, name).seeds for pair in study.compare)]
    if shown:
        parts.append(
            "Differences seed by seed, ± their standard error; **bold** where the 95 % interval (Student's t) leaves out zero."
        )
        for some in _tables(shown):
            pairs = [
                [
                    f"{ours} − {theirs}",
                    *(_difference(record.difference(ours, theirs, name), name) for name in some),
                ]
                for ours, theirs in study.compare
            ]
            parts.append(_table(["", *some], pairs))
    if errors := record.errors():
        parts += ["Failed:", "\n".join(f"- {error}" for error in errors)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tables(names: Sequence[str]) -> list[list[str]]:
    """Divide figures among tables that a page has room for; those of a kind stay together."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault("retrieval" if name.endswith("R@1") else name.split()[0], []).append(name)
    tables: list[list[str]] = []
    for of_kind in kinds.values():
        if not tables or len(tables[-1]) + len(of_kind) > _COLUMNS:
            tables.append([])
        tables[-1] += of_kind
    return tables


def _seeds(record: Record) -> str:
    done = [sum("error" not in d for d in seeds.values()) for seeds in record.cells.values()]
    seeds = f"{min(done)}" if min(done) == max(done) else f"{min(done)} to {max(done)}"
    machines = {f"{d['device']}, torch {d['torch']}" for s in record.cells.values() for d in s.values()}
    unit = f"percentages but for {STEP}" if STEP in record.names() else "percentages"
    return (
        f"Means over {seeds} of {record.study.seeds} seeds, ± standard deviation; {unit}. "
        f"{'; '.join(sorted(machines))}."
    )


def _chance(record: Record, name: str) -> str:
    """Return what guessing comes to: of cells that are measured on other data, from the least to the most."""
    known = [value for cell in record.cells if not math.isnan(value := record.chance(cell, name))]
    shown = dict.fromkeys(_number(value, name) for value in sorted(known))
    return " to ".join([*shown][:: max(1, len(shown) - 1)]) or "–"


def _spread(value: Spread, name: str) -> str:
    deviation = "" if math.isnan(value.deviation) else f" ± {_number(value.deviation, name)}"
    return _number(value.mean, name) + deviation


def _difference(value: Spread, name: str) -> str:
    if not value.seeds:
        return "–"
    sign = "+" if value.mean >= 0 else "−"
    text = f"{sign}{_number(abs(value.mean), name)}"
    if not math.isnan(value.error):
        text += f" ± {_number(value.error, name)}"
    return f"**{text}**" if abs(value.mean) > value.margin else text


def _number(value: float, name: str) -> str:
    return "–" if math.isnan(value) else f"{value if name == STEP else 100 * value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
