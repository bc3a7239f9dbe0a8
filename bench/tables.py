"""Tables in markdown, made from records."""

from __future__ import annotations

from typing import Any

from cfmvit.bench.gate import OURS
from cfmvit.bench.record import key

SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def table(record: dict[str, Any]) -> str:
    """Return a record as markdown: the machine, the ops beside their peers, and what a call costs."""
    results = record["results"]
    timed = [x for x in results if x["pass"] and x["family"] != "calls"]
    calls = [x for x in results if x["pass"] and x["family"] == "calls"]
    failed = [x for x in results if not x["pass"]]
    parts = [machine_line(record)]
    if timed:
        head = ("op", "", "dtype", "pass", "time", "GB/s", "TFLOP/s", "of floor", "memory", "faster than")
        parts.append(markdown(head, [_row(x) for x in timed]))
    if calls:
        head = ("call on tiny tensors", "dtype", "pass", "time", "nearest ATen op", "more")
        parts.append(markdown(head, [_call(x) for x in calls]))
    parts += [
        f"{x['op']}, {x['size']}, {x['dtype']}: failed the gate with error {x['gate']['error']:.2g} "
        f"(at most {x['gate']['tolerance']:g}), not timed."
        for x in failed
    ]
    parts += [f"{x['op']}, {x['size']}, {x['dtype']}: {x['error']}." for x in record.get("failed", [])]
    missing = {
        (name, figures["skipped"])
        for x in results
        for name, figures in x["implementations"].items()
        if "skipped" in figures
    }
    parts += [f"{name} was left out: {reason}." for name, reason in sorted(missing)]
    return "\n\n".join(parts) + "\n"


def compare(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return markdown with the times of two records of ours, and how many times faster the second is."""
    old = {key(x): x for x in before["results"] if x["pass"]}
    new = {key(x): x for x in after["results"] if x["pass"]}
    rows = []
    for name in (name for name in old if name in new):
        a, b = (x["implementations"][OURS]["seconds"] for x in (old[name], new[name]))
        # Apart only if the spreads of the two do not overlap.
        verdict = "faster" if b["p80"] < a["p20"] else "slower" if b["p20"] > a["p80"] else "alike"
        op, size, dtype, device, which = name
        rows.append(
            (
                op,
                size,
                SHORT[dtype],
                device,
                which,
                duration(a["p50"]),
                duration(b["p50"]),
                f"{a['p50'] / b['p50']:.2f}x",
                verdict,
            )
        )
    parts = [markdown(("op", "size", "dtype", "device", "pass", "before", "after", "speed", ""), rows)]
    machines = [x["machine"] for x in (before, after)]
    different = [
        f"{name}: {machines[0].get(name)} and {machines[1].get(name)}"
        for name in ("device", "threads", "torch", "driver")
        if machines[0].get(name) != machines[1].get(name)
    ]
    if different:
        parts.append("Not one machine, so not one measurement: " + "; ".join(different) + ".")
    parts += [
        f"Only in the {which}: " + ", ".join(" ".join(name) for name in some) + "."
        for which, some in (
            ("first", [name for name in old if name not in new]),
            ("second", [name for name in new if name not in old]),
        )
        if some
    ]
    return "\n\n".join(parts) + "\n"


def duration(seconds: float) -> str:
    """Write a time as short as its size allows: 12.3 us, 4.56 ms, 1.23 s."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def size_of(count: float) -> str:
    """Write a number of bytes in MiB, or GiB from one on."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def machine_line(record: dict[str, Any]) -> str:
    """Say where a record was made, and the ceilings of its run."""
    machine, ceilings = record["machine"], record["ceilings"]
    rates = ", ".join(
        f"{rate / 1e12:.3g} TFLOP/s in {SHORT[name]}" for name, rate in ceilings["flops_per_s"].items()
    )
    where = machine["device"]
    where += (
        f", driver {machine['driver']}"
        if machine["driver"]
        else f", {machine['threads']} threads, {machine['capability']}"
    )
    busy = (machine.get("load") or 0) > 0.5
    where += f", busy with other work (load {machine['load']:.1f})" if busy else ""
    return (
        f"{where}; torch {machine['torch']}, commit {machine['commit']}, {machine['date'][:10]}. Ceilings of the same run: copies "
        f"{ceilings['copy_bytes_per_s'] / 1e9:.3g} GB/s, matrix products {rates}."
    )


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    ours = result["implementations"][OURS]
    shape = " ".join(f"{name}{value}" for name, value in result["shape"].items())
    faster = [
        f"{name}{_other(result['implementations'][name])} {ratio['p50']:.3g}x ({ratio['p20']:.2g}–{ratio['p80']:.2g})"
        for name, ratio in result["ratios"].items()
    ]
    flops = f"{ours['flops_per_s'] / 1e12:.2g}" if result["flops"] else ""
    return (
        f"`{result['op']}`",
        shape,
        SHORT[result["dtype"]],
        result["pass"],
        duration(ours["seconds"]["p50"]),
        f"{ours['bytes_per_s'] / 1e9:.3g}",
        flops,
        f"{ours['of_floor']:.0%}",
        size_of(ours["peak_bytes"]),
        ", ".join(faster),
    )


def _call(result: dict[str, Any]) -> tuple[str, ...]:
    mine = result["implementations"][OURS]["seconds"]["p50"]
    aten = result["implementations"].get("ATen", {}).get("seconds", {}).get("p50")
    name = f"`{result['op'].removeprefix('call_')}`"
    row = (name, SHORT[result["dtype"]], result["pass"], duration(mine))
    return (*row, *(("", "") if aten is None else (duration(aten), f"{(mine - aten) * 1e6:+.1f} us")))


def _other(figures: dict[str, Any]) -> str:
    return f" ({SHORT[figures['dtype']]})" if "dtype" in figures else ""


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
