"""What ``cfmvit bench`` does."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from cfmvit.bench import machine, record, tables
from cfmvit.bench.heap import keep_freed_memory
from cfmvit.bench.measure import measure
from cfmvit.bench.registry import DTYPES, FAMILIES, PASSES, Entry, load
from cfmvit.bench.summary import put_between_marks, summary
from cfmvit.progress import progress

DEFAULT_SIZES = {"cpu": ("small", "any"), "cuda": ("large", "any")}


def run(arguments: argparse.Namespace) -> None:
    """Do what the options ask for: benchmarks, or a table or a comparison of records."""
    if arguments.into is not None and arguments.table is None:
        raise ValueError("--into must come with --table")
    if arguments.compare:
        print(tables.compare(*(record.read(path) for path in arguments.compare)), end="")
    elif arguments.table is not None:
        _table(arguments.table, arguments.into)
    elif arguments.list:
        for entry in load().values():
            print(f"{entry.family:15} {entry.name:30} {', '.join(entry.sizes)}")
    else:
        _measure(arguments)


def _table(path: Path, into: Path | None) -> None:
    found = record.read(path)
    if into is None:
        print(tables.table(found), end="")
    else:
        put_between_marks(into, summary(found, path, into))
        _draw(found, path)


def _measure(arguments: argparse.Namespace) -> None:
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device must be cpu here, got cuda: PyTorch sees no GPU")
    _known("--dtype", arguments.dtype, DTYPES)
    _known("--passes", arguments.passes or (), PASSES)
    if arguments.add and arguments.output is None:
        raise ValueError("--add must come with --output")
    entries = _selected(arguments.ops)
    sizes = arguments.size or DEFAULT_SIZES[device]
    _known("--size", arguments.size or (), {size for entry in entries for size in entry.sizes})
    jobs = [
        (entry, size, dtype)
        for entry in entries
        for size in entry.sizes
        if size in sizes
        for dtype in arguments.dtype
        if dtype in entry.dtypes
    ]
    if not jobs:
        raise ValueError(
            f"no op of {', '.join(arguments.ops)} has size {' or '.join(sizes)} in that dtype; see --list"
        )
    if arguments.output is not None:
        record.ensure_writable(arguments.output)  # an error now, not after the first minutes
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    about = machine.header(device)  # before this run is itself what keeps the machine busy
    if device == "cpu":
        about["heap"] = keep_freed_memory()
    ceilings = machine.ceilings(device, [DTYPES[name] for name in arguments.dtype], arguments.seconds)
    done = _begun(arguments) or {
        "schema": record.SCHEMA,
        "machine": about,
        "ceilings": ceilings,
        "results": [],
    }
    rates = done["ceilings"]["flops_per_s"]
    done["ceilings"]["flops_per_s"] = ceilings["flops_per_s"] | rates
    failed: list[dict[str, Any]] = done.setdefault("failed", [])
    before = len(failed)
    with progress(len(jobs), desc="bench", unit="case") as bar:
        for entry, size, dtype in jobs:
            bar.set_postfix_str(f"{entry.name} {size} {dtype}", refresh=sys.stderr.isatty())
            measured = measure(
                entry,
                size,
                dtype,
                device,
                ceilings,
                passes=arguments.passes,
                seconds=arguments.seconds,
                compiled=arguments.compile,
                warm=arguments.warm,
            )
            try:
                done["results"].extend(measured)
            except Exception as error:  # the others are measured all the same
                traceback.print_exc()
                text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                failed.append({"op": entry.name, "size": size, "dtype": dtype, "error": text})
            if arguments.output is not None:
                record.write(arguments.output, done)  # what is measured stays, should the run be cut off
            bar.update()
    print(tables.table(done), end="")
    if arguments.output is not None and not arguments.add:
        _draw(done, arguments.output)
    if len(failed) > before:
        raise RuntimeError(
            "; ".join(f"{x['op']} {x['size']} {x['dtype']}: {x['error']}" for x in failed[before:])
        )


def _draw(done: dict[str, Any], path: Path) -> None:
    from cfmvit.bench.roofline import roofline

    path.with_suffix(".svg").write_text(roofline(done))


def _begun(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return the record that is added to, if there is one."""
    path: Path = arguments.output
    return record.read(path) if arguments.add and path.stat().st_size else None


def _selected(names: list[str]) -> list[Entry]:
    entries = load()
    _known("OP", names, {*entries, *FAMILIES})
    return [entry for entry in entries.values() if not names or {entry.name, entry.family} & set(names)]


def _known(option: str, names: Any, known: Any) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{option} must be of {', '.join(sorted(known))}, got {name!r}")
