"""How time is taken on a GPU, with a stand-in for it: what is called in which order, and what the record says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cfmvit.bench import kernels, machine, measure, timing
from cfmvit.bench.registry import Case, Entry, load


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that a GPU gets, in order."""
    found: list[str] = []
    tell = lambda name: lambda *args, **options: found.append(name)
    event = SimpleNamespace(record=tell("record"), synchronize=tell("wait"), elapsed_time=lambda end: 2.0)
    cuda = {
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=60 * 2**20),
        "Event": lambda enable_timing: event,
        "_sleep": tell("sleep"),
        "synchronize": tell("wait"),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.nvtx, "range_start", tell("range_start"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_end", tell("range_end"))
    monkeypatch.setattr(torch.cuda.profiler, "start", tell("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", tell("stop"))
    return found


@pytest.mark.parametrize(("cold", "before"), [(True, ["read"]), (False, [])])
def test_a_cold_cache_is_one_that_was_read_into(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, cold: bool, before: list[str]
) -> None:
    sizes: list[int] = []

    def zeros(count: int, device: str) -> Any:
        sizes.append(4 * count)
        return SimpleNamespace(sum=lambda: calls.append("read"))

    monkeypatch.setattr(torch, "zeros", zeros)
    clock = timing._cuda_clock(cold)
    assert clock(lambda: calls.append("run"), 1) == 2e-3
    assert calls == [*before, "sleep", "record", "run", "record", "wait"]
    assert sizes == [2 * 60 * 2**20]


def test_the_host_waits_once(calls: list[str]) -> None:
    assert timing.host_seconds(lambda: calls.append("run")) > 0
    assert calls[-1001:] == [*["run"] * 1000, "wait"]


def test_ncu_sees_one_call(calls: list[str]) -> None:
    kernels.show_to_ncu(lambda: calls.append("run"), "gather_tokens tiny")
    assert calls == ["range_start", "start", "run", "wait", "stop", "range_end"]


def test_a_record_has_cold_warm_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(
        runs: dict[str, Callable[[], Any]], device: str, seconds: float, *, cold: bool = True
    ) -> dict[str, list[float]]:
        return {name: [2e-3 if cold else 1e-3] for name in runs}

    monkeypatch.setattr(measure, "interleaved", interleaved)
    monkeypatch.setattr(measure, "host_seconds", lambda run: 1e-5)
    monkeypatch.setattr(measure, "peak_bytes", lambda run, device: 0)
    ceilings = {"copy_bytes_per_s": 4e12, "flops_per_s": {"float32": 5e13}}

    class OnCPU(Entry):
        def case(self, size: str, dtype: torch.dtype, device: str) -> Case:
            return super().case(size, dtype, "cpu")

    def on_cpu(name: str) -> Entry:
        return OnCPU(**vars(load()[name]))

    loss = list(measure.measure(on_cpu("siglip_loss"), "tiny", "float32", "cuda", ceilings, warm=True))
    for figures in (x["implementations"]["cfmvit"] for x in loss):
        assert figures["seconds"]["p50"] == 2e-3 and figures["warm_seconds"]["p50"] == 1e-3
        assert "host_seconds" not in figures
    call = next(measure.measure(on_cpu("call_siglip_loss"), "any", "float32", "cuda", ceilings))
    assert {name: x["host_seconds"] for name, x in call["implementations"].items()} == {
        "cfmvit": 1e-5,
        "ATen": 1e-5,
    }


def test_clocks_are_read_while_it_works(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    randn = torch.randn
    monkeypatch.setattr(machine, "SIDE", {"cuda": 2})
    monkeypatch.setattr(torch, "randn", lambda *shape, device, dtype: randn(*shape))

    def output(*command: str) -> str:
        calls.append(command[0])
        return "1980 MHz, 3201 MHz, 650.10 W, 700.00 W, 50, 0x0000000000000004"

    monkeypatch.setattr(machine, "_output", output)
    assert machine.under_load().startswith("clocks.sm 1980 MHz, clocks.mem 3201 MHz, power.draw 650.10 W")
    assert calls == ["nvidia-smi", "wait"]
