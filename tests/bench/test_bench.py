"""The benchmark's own rules: what is counted, what is refused, what is written. No time is asserted."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cfmvit import ops
from cfmvit.bench import gate, machine, masking, record, tables
from cfmvit.bench.draw import Draw
from cfmvit.bench.measure import measure
from cfmvit.bench.memory import peak_bytes
from cfmvit.bench.registry import DTYPES, Case, Cost, Peer, Skip, load
from cfmvit.bench.summary import summary
from cfmvit.bench.timing import interleaved, quantiles
from cfmvit.cli import main

ENTRIES = load()
CEILINGS = {"copy_bytes_per_s": 1e10, "flops_per_s": dict.fromkeys(DTYPES, 1e11)}
KERNELS = [name for name, entry in ENTRIES.items() if entry.family != "calls"]


def measured(name: str, **options: Any) -> list[dict[str, Any]]:
    return list(measure(ENTRIES[name], "tiny", "float32", "cpu", CEILINGS, seconds=1e-3, **options))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
def test_ours_and_every_peer_compute_the_same(name: str, dtype: str) -> None:
    case = ENTRIES[name].case("tiny", DTYPES[dtype], "cpu")
    verdicts = gate.check(case, DTYPES[dtype])
    assert {"cfmvit", *(n for n, x in case.peers.items() if isinstance(x, Peer))} == set(verdicts)
    assert all(verdict["passed"] for verdict in verdicts.values()), verdicts


def test_every_op_is_measured_and_its_call_too() -> None:
    functions = {name for name in ops.__all__ if name.islower()} - {"check_indices"}
    assert functions <= set(KERNELS)
    assert {f"call_{name}" for name in functions} <= set(ENTRIES)


def test_bytes_and_flops_are_those_of_the_formulas() -> None:
    gather = ENTRIES["gather_tokens"].case("tiny", torch.bfloat16, "cpu")  # B 3, N 16, D 24, M 12
    assert gather.forward == Cost(2 * 3 * 12 * 24 * 2 + 16 * 24 * 2 + 3 * 12 * 8)
    loss = ENTRIES["masked_cosine_loss"].case("tiny", torch.float32, "cpu")
    # Forward and backward in one pass: both rows are read once, the gradient of all tokens is written once.
    assert loss.cost("both").bytes == (2 * 12 + 16) * 3 * 24 * 4 + 3 * 12 * 8
    # A sector of 32 bytes holds a line of two patches of 16 x 16: both are read where one is kept.
    assert masking.bytes_of_patches(224, 32, 10) == 10 * 32 * 32
    assert masking.bytes_of_patches(32, 16, 1) == 2 * 16 * 16
    assert masking.bytes_of_patches(32, 16, 4) == 4 * 16 * 16
    clip = ENTRIES["info_nce"].case("tiny", torch.float32, "cpu")  # B 7, D 16
    assert clip.cost("both").flops == 4 * 2 * 7 * 7 * 16


def test_figures_follow_from_times_and_ceilings() -> None:
    results = measured("masked_cosine_loss")
    assert [x["pass"] for x in results] == ["forward", "backward", "both"]
    for x in results:
        assert x["floor_seconds"] == max(x["bytes"] / 1e10, x["flops"] / 1e11)
        ours, eager = x["implementations"]["cfmvit"], x["implementations"]["eager"]
        assert ours["of_floor"] == x["floor_seconds"] / ours["seconds"]["p50"]
        assert ours["bytes_per_s"] == x["bytes"] / ours["seconds"]["p50"]
        assert x["ratios"]["eager"]["p50"] == eager["seconds"]["p50"] / ours["seconds"]["p50"]
        assert ours["rounds"] == eager["rounds"] >= 7
        assert ours["seconds"]["p20"] <= ours["seconds"]["p50"] <= ours["seconds"]["p80"]


def test_peak_memory_counts_outputs_and_temporaries() -> None:
    case = ENTRIES["restore_tokens"].build(Draw(torch.float32, torch.device("cpu")), B=4, N=196, D=768)
    output = 4 * 196 * 768 * 4
    ours, mae = (
        peak_bytes(lambda run=run: run(**case.inputs), "cpu") for run in (case.run, case.peers["MAE"].run)
    )
    assert output <= ours < 1.5 * output
    assert mae >= 2 * output  # the concatenation, what is gathered from it, and the sum


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the heap is glibc's on Linux only")
def test_no_page_faults_between_calls() -> None:
    """In a process of its own: what other tests left in the heap must not count."""
    code = """if True:
        import resource, torch
        from cfmvit.bench import heap
        known = heap.keep_freed_memory() != "the system's"
        for _ in range(4):
            torch.ones(2**24)  # 64 MiB: above what glibc would keep
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before if known else -1)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if int(done.stdout) < 0:
        pytest.skip("no glibc")
    assert int(done.stdout) < 1000  # of 16384 pages


def test_a_wrong_kernel_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.gather_tokens

    def wrong(tokens: Tensor, index: Tensor, **options: Any) -> Tensor:
        out = right(tokens, index, **options)
        return torch.cat([out[:, :1], out[:, :-1]], 1)  # one row late

    monkeypatch.setattr(ops, "gather_tokens", wrong)
    (only,) = measured("gather_tokens")
    assert not only["gate"]["passed"] and only["pass"] is None and only["implementations"] == {}
    text = tables.table({"machine": MACHINE, "ceilings": CEILINGS, "results": [only]})
    assert "gather_tokens, tiny, float32: failed the gate" in text


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.masked_cosine_loss

    def wrong(*tensors: Tensor, impl: str | None = None) -> Tensor:
        loss = right(*tensors, impl=impl)
        return loss if impl else loss.detach() + 1.01 * (loss - loss.detach())

    monkeypatch.setattr(ops, "masked_cosine_loss", wrong)
    (only,) = measured("masked_cosine_loss")
    assert only["gate"]["error"] == pytest.approx(0.01, rel=0.01)


def test_nan_and_other_shapes_are_not_close() -> None:
    one = torch.ones(2, dtype=torch.float64)
    assert gate.error([torch.tensor([1.0, math.nan])], [one]) == math.inf
    assert gate.error([torch.ones(3)], [one]) == math.inf
    assert gate.error([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == math.inf
    assert gate.error([torch.tensor([1.0, 1.1])], [one]) == pytest.approx(0.1)


def test_a_peer_that_computes_something_else_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from cfmvit.bench import masking

    monkeypatch.setattr(masking, "pick", lambda tokens, index: tokens[:, : index.shape[1]] * 3)
    forward, *_ = measured("gather_tokens")
    assert "computes something else" in forward["implementations"]["MAE"]["skipped"]
    assert "MAE" not in forward["ratios"]


def test_an_absent_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    case = ENTRIES["roi_align"].case("tiny", torch.float32, "cpu")
    assert isinstance(case.peers["torchvision"], Skip) and "torchvision" in case.peers["torchvision"].reason


def test_boxes_lie_within_the_image_in_coco_sizes() -> None:
    boxes = Draw(torch.float32, torch.device("cpu")).boxes(4000, 640.0)
    size = boxes[:, 2:] - boxes[:, :2]
    assert (size > 0).all() and (boxes >= 0).all() and (boxes <= 640.001).all()
    assert (size.prod(1) < 32**2).float().mean().item() == pytest.approx(0.41, abs=0.03)
    assert (size.prod(1) < 96**2).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_rounds_are_shared_and_quantiles_are_in_order() -> None:
    calls: list[str] = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, "cpu", 1e-4)
    assert len(times["a"]) == len(times["b"]) >= 7
    assert quantiles([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}


def test_a_peer_that_can_not_run_is_named_and_the_others_are_measured() -> None:
    calls: list[int] = []

    def build(draw: Draw, **size: int) -> Case:
        case = ENTRIES["gather_tokens"].build(draw, **size)

        def large(**inputs: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) > 1:  # at the gate it is small
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")
            return case.run(**inputs)

        return replace(case, peers={"large": Peer(large), **case.peers})

    entry = replace(ENTRIES["gather_tokens"], build=build)
    for result in measure(entry, "tiny", "float32", "cpu", CEILINGS, seconds=1e-3):
        skipped = result["implementations"]["large"]["skipped"]
        assert skipped == "CUDA out of memory. Tried to allocate" and set(result["ratios"]) == {
            "MAE",
            "eager",
        }


def test_runs_are_added_to_a_record_and_an_op_that_fails_ends_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(machine, "COPIED", {"cpu": 2**16})
    monkeypatch.setattr(machine, "SIDE", {"cpu": 32})
    monkeypatch.setattr(ops, "gather_tokens", broken)
    monkeypatch.setenv("CFMVIT_COMMIT", "abc123")
    path = tmp_path / "bench.json"
    run = ["bench", "--size", "tiny", "--seconds", "0.001", "--device", "cpu", "--passes", "forward", "--add"]
    run += ["--output", str(path)]
    assert main([*run, "gather_tokens", "restore_tokens", "--dtype", "bfloat16"]) == 2
    said = "gather_tokens tiny bfloat16: RuntimeError: CUDA error: an illegal memory access"
    output = capsys.readouterr()
    assert said in output.err and "RuntimeError: CUDA error: an illegal memory access." in output.out
    assert main([*run, "random_masking", "--dtype", "float32"]) == 0
    found = record.read(path)
    assert [x["op"] for x in found["results"]] == ["restore_tokens", "random_masking"]
    assert set(found["ceilings"]["flops_per_s"]) == {"bfloat16", "float32"}
    assert found["machine"]["commit"] == "abc123" and [x["op"] for x in found["failed"]] == ["gather_tokens"]
    assert list(tmp_path.iterdir()) == [path], "a picture is of a whole record"


MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc",
    "device": "a CPU",
    "device_type": "cpu",
    "driver": None,
    "threads": 2,
    "capability": "AVX2",
    "torch": "2.11",
}


def made_record(path: Path, p50: float, **machine: Any) -> Path:
    (result,) = measured("gather_tokens", passes=["forward"])
    result["implementations"]["cfmvit"]["seconds"] = {"p20": 0.9 * p50, "p50": p50, "p80": 1.1 * p50}
    record.write(
        path, {"schema": 1, "machine": {**MACHINE, **machine}, "ceilings": CEILINGS, "results": [result]}
    )
    return path


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = made_record(tmp_path / "a.json", 2e-3), made_record(tmp_path / "b.json", 1e-3, threads=4)
    assert main(["bench", "--compare", str(before), str(after)]) == 0
    out = capsys.readouterr().out
    assert "| gather_tokens | tiny | fp32 | cpu | forward | 2 ms | 1 ms | 2.00x | faster |" in out
    assert "threads: 2 and 4" in out
    main(["bench", "--compare", str(before), str(before)])
    assert "1.00x | alike |" in capsys.readouterr().out


def test_the_command_writes_a_record_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "COPIED", {"cpu": 2**16})
    monkeypatch.setattr(machine, "SIDE", {"cpu": 32})
    threads, path = torch.get_num_threads(), tmp_path / "results" / "cpu.json"
    options = ["--size", "tiny,any", "--dtype", "float32", "--seconds", "0.001", "--device", "cpu"]
    try:
        assert (
            main(
                [
                    "bench",
                    "restore_tokens",
                    "info_nce",
                    "call_restore_tokens",
                    *options,
                    "--output",
                    str(path),
                ]
            )
            == 0
        )
        printed = capsys.readouterr().out
        found = record.read(path)
    finally:
        torch.set_num_threads(threads)
    assert {"date", "commit", "device", "driver", "threads", "torch", "packages"} <= set(found["machine"])
    assert found["ceilings"]["copy_bytes_per_s"] > 0 and set(found["ceilings"]["flops_per_s"]) == {"float32"}
    assert {record.key(x)[0] for x in found["results"]} == {
        "restore_tokens",
        "info_nce",
        "call_restore_tokens",
    }
    assert json.loads(path.read_text()) == found
    assert tables.table(found) == printed
    assert printed.count("`restore_tokens`") == 5 and "open_clip" in printed and " us |" in printed
    ElementTree.fromstring(path.with_suffix(".svg").read_text())

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    assert main(["bench", "--table", str(path), "--into", str(page)]) == 0
    head, text, tail = re.split("<!-- /?bench -->", page.read_text())
    assert (head, tail) == ("before\n", "\nafter\n") and "old" not in text
    assert re.search(
        r"\| `restore_tokens` \| B3 N16 D24 \| MAE \| [\d.]+ us \([\d.]+x\) \| [\d.]+ us \(", text
    )
    assert re.search(r"\| `restore_tokens` \| -?[\d.]+ us \| -?[\d.]+ us \|", text)
    assert "(results/cpu.json)" in text and "(results/cpu.svg)" in text

    left_out = next(x for x in found["results"] if (x["op"], x["pass"]) == ("info_nce", "both"))
    del left_out["ratios"]["open_clip"]
    assert "x float32)" not in text
    assert summary(found, path, page).count("x float32)") == 1, "beside what it is, where that is another"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gather_tokenz"], "OP must be of .*, got 'gather_tokenz'"),
        (["--dtype", "int8"], "--dtype must be of .*, got 'int8'"),
        (["--size", "vast"], "--size must be of .*, got 'vast'"),
        (["--passes", "sideways"], "--passes must be of .*, got 'sideways'"),
        (["random_masking", "--dtype", "float16"], "no op of random_masking has size small or any"),
        (["--output", "."], "Is a directory"),
        (["--into", "README.md"], "--into must come with --table"),
        (["--add"], "--add must come with --output"),
        (["--table", "none.json"], "No such file"),
        (
            ["--compare", "text.json", "text.json"],
            "must be a record of cfmvit bench, got text that is not JSON",
        ),
        (["--table", "other.json"], "must be a record of cfmvit bench, got JSON without"),
        (["--table", "later.json"], "must be of schema 1, got 2"),
        (["--table", "good.json", "--into", "text.json"], "must have one line <!-- bench -->"),
    ],
)
def test_bad_arguments_are_one_line_each(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"schema": 1, "machine": MACHINE, "ceilings": CEILINGS, "results": []}
    for name, text in (
        ("text", "no"),
        ("other", "{}"),
        ("later", json.dumps({**good, "schema": 2})),
        ("good", json.dumps(good)),
    ):
        Path(f"{name}.json").write_text(text)
    assert main(["bench", "--device", "cpu", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("cfmvit bench: error: ")
    assert re.search(message, line)


@pytest.mark.parametrize("option", [["--threads", "0"], ["--seconds", "nan"], ["--threads", "two"]])
def test_numbers_must_be_positive(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *option])
    assert "must be a positive number" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda"]) == 2
    assert "--device must be cpu here, got cuda: PyTorch sees no GPU" in capsys.readouterr().err
