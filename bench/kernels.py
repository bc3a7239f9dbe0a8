"""The kernels in one call of an op, forward and backward, and the time of each; or that call alone, for ncu to look at.

python -m cfmvit.bench.kernels --size 32768x768 info_nce
ncu --profile-from-start off --nvtx python -m cfmvit.bench.kernels --ncu --size small info_nce
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from cfmvit.bench.measure import pass_of
from cfmvit.bench.registry import DTYPES, Entry, Peer, load


def kernels(run: Callable[[], Any], device: str) -> list[dict[str, Any]]:
    """Return the name, the calls and the microseconds of each kernel of a call, the longest first; on the CPU of each operator."""
    kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    with profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]) as found:
        run()
        _wait(device)
    rows = [
        {
            "kernel": x.key,
            "calls": x.count,
            "us": x.self_device_time_total if device == "cuda" else x.self_cpu_time_total,
        }
        for x in found.key_averages()
        if x.device_type == kind
    ]
    return sorted(rows, key=lambda row: -row["us"])


def show_to_ncu(run: Callable[[], Any], name: str) -> None:
    """Make a call in a range of its name, the only thing that ncu sees; the backward pass has a thread of its own."""
    mark = torch.cuda.nvtx.range_start(name)
    torch.cuda.profiler.start()
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    torch.cuda.nvtx.range_end(mark)


def call_of(entry: Entry, size: str, device: str) -> Callable[[], Any]:
    """Return a call that has run once."""
    dtype = "bfloat16" if "bfloat16" in entry.dtypes else entry.dtypes[0]
    case = entry.case(size, DTYPES[dtype], device)
    run = pass_of(case, Peer(case.run), "both" if case.gradients else "forward")
    run()
    _wait(device)
    return run


def main() -> None:
    """Run the command line; the last line that it prints is JSON."""
    parser = argparse.ArgumentParser(prog="kernels", description=__doc__.split("\n\n")[0])
    parser.add_argument("ops", nargs="+", metavar="OP")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="large", help="comma-separated; of each op those that it has")
    parser.add_argument(
        "--ncu", action="store_true", help="between cudaProfilerStart and Stop, without times"
    )
    options = parser.parse_args()
    found = {}
    for entry in (load()[op] for op in options.ops):
        for size in (size for size in options.size.split(",") if size in entry.sizes):
            name, run = f"{entry.name} {size}", call_of(entry, size, options.device)
            if options.ncu and options.device == "cuda":
                show_to_ncu(run, name)
                continue
            found[name] = kernels(run, options.device)
            print(f"{name}: {sum(row['us'] for row in found[name]):.0f} us")
            for row in found[name][:12]:
                print(f"{row['us']:10.1f} us {row['calls']:4} x {row['kernel'][:100]}", flush=True)
    print(json.dumps(found))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
