"""One case measured: the gate, then each pass of ours and of the peers side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from cfmvit.bench import gate
from cfmvit.bench.gate import OURS
from cfmvit.bench.memory import peak_bytes
from cfmvit.bench.registry import DTYPES, Case, Cost, Entry, Peer, Skip
from cfmvit.bench.timing import host_seconds, interleaved, quantiles


def measure(
    entry: Entry,
    size: str,
    dtype: str,
    device: str,
    ceilings: dict[str, Any],
    *,
    passes: Iterable[str] | None = None,
    seconds: float = 2.0,
    compiled: bool = False,
    warm: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield a record of each pass; one record without times if ours fails the gate.

    With ``warm``, a GPU's times from a warm L2 cache stand beside those from a cold one.
    """
    case = entry.case(size, DTYPES[dtype], device)
    if compiled:
        case = _with_compiled(case)
    checked = entry.gate_size.get(size, size)
    subject = case if checked == size else entry.case(checked, DTYPES[dtype], device)
    verdicts = gate.check(
        replace(subject, peers=case.peers if checked == size else subject.peers), DTYPES[dtype]
    )
    common = {
        "op": entry.name,
        "family": entry.family,
        "size": size,
        "shape": dict(entry.sizes[size]),
        "dtype": dtype,
        "device": device,
        "gate": {**verdicts[OURS], "size": checked},
    }
    if not verdicts[OURS]["passed"]:
        yield {**common, "pass": None, "implementations": {}, "ratios": {}}
        return
    skipped = {name: {"skipped": x.reason} for name, x in case.peers.items() if isinstance(x, Skip)}
    ready = {OURS: Peer(case.run)}
    for name, x in case.peers.items():
        if name in verdicts and not verdicts[name]["passed"]:
            skipped[name] = {"skipped": verdicts[name]["reason"]}
        elif isinstance(x, Peer):
            ready[name] = x
    for name in passes or entry.passes:
        if name in ("forward", "recorded") or case.gradients:
            cost = case.cost(name)
            runs = {OURS: pass_of(case, ready[OURS], name)}
            for other, x in list(ready.items()):
                if other != OURS and (why_not := _tried(case, x, name, other, runs)):
                    skipped[other] = {"skipped": why_not}
                    del ready[other]
            record = _record(runs, cost, dtype, device, ceilings, seconds)
            if device == "cuda" and warm:
                for other, times in interleaved(runs, device, seconds, cold=False).items():
                    record["implementations"][other]["warm_seconds"] = quantiles(times)
            if device == "cuda" and entry.family == "calls":
                for other, run in runs.items():
                    record["implementations"][other]["host_seconds"] = host_seconds(run)
            for other, figures in record["implementations"].items():
                figures["error"] = verdicts[other]["error"] if other in verdicts else None
                if ready[other].dtype is not None:
                    figures["dtype"] = str(ready[other].dtype).removeprefix("torch.")
            record["implementations"] |= skipped
            yield {**common, "pass": name, **record}


def _record(
    runs: dict[str, Callable[[], Any]],
    cost: Cost,
    dtype: str,
    device: str,
    ceilings: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    times = interleaved(runs, device, seconds)
    floor = max(cost.bytes / ceilings["copy_bytes_per_s"], cost.flops / ceilings["flops_per_s"][dtype])
    figures = {}
    for name, values in times.items():
        spent = quantiles(values)
        figures[name] = {
            "seconds": spent,
            "rounds": len(values),
            "bytes_per_s": cost.bytes / spent["p50"],
            "flops_per_s": cost.flops / spent["p50"],
            "of_floor": floor / spent["p50"],
            "peak_bytes": peak_bytes(runs[name], device),
        }
    ours = times[OURS]
    ratios = {
        name: quantiles([theirs / mine for theirs, mine in zip(values, ours)])
        | {"p50": figures[name]["seconds"]["p50"] / figures[OURS]["seconds"]["p50"]}
        for name, values in times.items()
        if name != OURS
    }
    return {
        "bytes": cost.bytes,
        "flops": cost.flops,
        "floor_seconds": floor,
        "implementations": figures,
        "ratios": ratios,
    }


def _tried(case: Case, x: Peer, name: str, other: str, runs: dict[str, Callable[[], Any]]) -> str:
    """Add a peer's pass to ``runs``, or say why it can't run here: large sizes may need more memory than there is."""
    try:
        run = pass_of(case, x, name)
        run()
    except RuntimeError as refusal:
        return str(refusal).splitlines()[0]
    runs[other] = run
    return ""


def pass_of(case: Case, x: Peer, name: str) -> Callable[[], Any]:
    """Return a function of no arguments that runs one pass of an implementation."""
    inputs = gate.leaves(case, x.dtype)
    if name == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return x.run(**inputs)

        return forward
    if name == "recorded":
        return lambda: x.run(**inputs)
    wanted = [inputs[key] for key in case.gradients]
    outputs = gate.tensors(x.run(**inputs))
    grads = gate.grad_outputs(outputs)
    if name == "backward":
        return lambda: torch.autograd.grad(outputs, wanted, grads, retain_graph=True, allow_unused=True)
    return lambda: torch.autograd.grad(gate.tensors(x.run(**inputs)), wanted, grads, allow_unused=True)


def _with_compiled(case: Case) -> Case:
    """Add torch.compile's version of the eager peer, or of MAE's or open_clip's formulation, and of the one in float32."""
    of_op = next(
        (name for name in ("eager", "MAE", "open_clip") if isinstance(case.peers.get(name), Peer)), ""
    )
    peers = dict(case.peers)
    for name, compiled in ((of_op, "torch.compile"), ("float32", "torch.compile float32")):
        eager = case.peers.get(name)
        if not isinstance(eager, Peer):
            continue
        run = torch.compile(eager.run, fullgraph=True, dynamic=False)
        try:
            gate.results(case, run)
        except Exception as error:  # whatever a compiler may throw: the others are measured all the same
            peers[compiled] = Skip(f"does not compile here: {str(error).strip().splitlines()[0]}")
        else:
            peers[compiled] = replace(eager, run=run)
    return replace(case, peers=peers)
