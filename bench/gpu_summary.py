"""What gpu_check has found, for reading: how its steps ended, and the ops beside their floors, their peers and what they should reach.

Reads JSON alone, since there may be nothing else: the build may have failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# (op, size, pass) -> how many times its floor it may take, in bfloat16 on an H200; of info_nce, how many seconds.
TIMES_FLOOR = {
    ("linear_masked_cosine_loss", "large", "forward"): 1 / 0.65,
    ("linear_masked_cosine_loss", "large", "both"): 1 / 0.65,
    ("masked_pixel_loss", "large", "forward"): 1.3,
    ("masked_pixel_loss", "large", "both"): 1.3,
    ("roi_align", "large", "forward"): 5.0,
    ("roi_align", "channels-last", "forward"): 1.3,
    ("pool_regions", "large", "forward"): 3.0,
    ("score_regions", "large", "forward"): 2.0,
}
SECONDS = {("info_nce", "32768x768", "both"): 11e-3}
OURS = "cfmvit"


def summary(folder: Path) -> str:
    """Return markdown of the records in a folder."""
    parts = ["# GPU check"]
    for command in ("first", "second"):
        if record := _read(folder / f"{command}.json"):
            parts += list(_steps(record))
    if record := _read(folder / "bench.json"):
        parts += list(_ops(record))
    return "\n\n".join(parts) + "\n"


def held(result: dict[str, Any]) -> tuple[str, bool] | None:
    """Return what a result should reach, and whether it does; None where nothing is asked of it."""
    which = result["op"], result["size"], result["pass"]
    ours = result["implementations"][OURS]
    if which in SECONDS:
        return f"<= {_time(SECONDS[which])}", ours["seconds"]["p50"] <= SECONDS[which]
    if which in TIMES_FLOOR:
        return f"<= {TIMES_FLOOR[which]:.3g}x floor", 1 / ours["of_floor"] <= TIMES_FLOOR[which]
    return None


def _steps(record: dict[str, Any]) -> Iterator[str]:
    yield f"## {record['command']}\n\nCommit {record['commit']}, torch {record['torch']}."
    for step in record["steps"]:
        found = step["found"] or {}
        if "ceilings" in found:
            rates = ", ".join(
                f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in found["ceilings"]["flops_per_s"].items()
            )
            copies = found["ceilings"]["copy_bytes_per_s"] / 1e12
            yield f"{found['device']}, driver {found['driver']}: copies {copies:.3g} TB/s, {rates}; {found['state']}."
        yield from _training(found.get("results", {}))
    rows = [
        (step["name"], step["status"], f"{step['seconds']:.0f} s", _cell(step["last"]))
        for step in record["steps"]
    ]
    yield _table(("step", "ended", "", ""), rows)
    wrong = [
        f"{step['name']}:\n" + "\n".join(step["wrong"])
        for step in record["steps"]
        if step["wrong"] and _failed(step)
    ]
    if wrong:
        yield "```\n" + "\n\n".join(wrong) + "\n```"


def _training(results: dict[str, Any]) -> Iterator[str]:
    """Say how long steps of pretraining take beside others', of what bench/training.py has found."""
    for found in [*results.get("step", []), *results.get("pieces", [])]:
        first, *others = found["seconds"]
        beside = ", ".join(f"{found['ratios'][name]:.3g} of {name}" for name in others)
        time = _time(found["seconds"][first]["p50"])
        yield f"A step of {found['model']}, {found['batch']} pairs, {first}: {time}, {beside}."
    for found in results.get("memory", []):
        yield f"{found['batch']} pairs of {found['model']} in {found['pieces']} pieces: {found['bytes'] / 1e9:.3g} GB."


def _ops(record: dict[str, Any]) -> Iterator[str]:
    timed = [x for x in record["results"] if x["pass"] and x["family"] != "calls"]
    rows = []
    for x in timed:
        ours, target = x["implementations"][OURS], held(x)
        peers = [f"{name} {_times(x['implementations'][name])}" for name in x["ratios"]]
        asked = "" if target is None else f"{target[0]}: {'holds' if target[1] else '**missed**'}"
        shape = " ".join(f"{name}{value}" for name, value in x["shape"].items())
        rows.append(
            (
                f"`{x['op']}`",
                shape,
                x["pass"],
                _times(ours),
                f"{ours['of_floor']:.0%}",
                ", ".join(peers),
                asked,
            )
        )
    yield "## Ops\n\nTimes on the device from a cold L2 cache, which reading a large buffer makes; after a slash from a warm one."
    yield _table(("op", "size", "pass", "measured", "of floor", "peers", "target"), rows)
    calls = [x for x in record["results"] if x["pass"] == "recorded" and x["family"] == "calls"]
    if calls:
        rows = [
            (
                f"`{x['op'].removeprefix('call_')}`",
                *(_host(x["implementations"].get(name, {})) for name in (OURS, "ATen")),
            )
            for x in calls
        ]
        yield "A call on tiny tensors: on the host, and on the device."
        yield _table(("op", "ours", "ATen's nearest"), rows)
    for x in record["results"]:
        if not x["pass"]:
            yield f"{x['op']} {x['size']} {x['dtype']} failed the gate: error {x['gate']['error']:.2g}."
    for x in record.get("failed", []):
        yield f"{x['op']} {x['size']} {x['dtype']}: {_cell(x['error'])}."


def _times(figures: dict[str, Any]) -> str:
    warm = figures.get("warm_seconds")
    return _time(figures["seconds"]["p50"]) + (f" / {_time(warm['p50'])}" if warm else "")


def _host(figures: dict[str, Any]) -> str:
    if "seconds" not in figures:
        return ""
    device = _time(figures["seconds"]["p50"])
    return f"{_time(figures['host_seconds'])}, {device}" if "host_seconds" in figures else device


def _failed(step: dict[str, Any]) -> bool:
    return not step["status"].startswith(("passed", "skipped"))


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _cell(text: str) -> str:
    return text.replace("|", "/")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ("---",) * len(head), *rows])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or being written when it was cut off
        return None
