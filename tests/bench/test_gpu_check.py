"""bench/gpu_check on a CPU, with faults planted: what goes wrong is named, and what was found before is kept."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cfmvit.bench import kernels, smoke
from cfmvit.bench.registry import load

from ..processes import ROOT

PLANTED = {
    "passes": "def test_passes():\n    pass\n",
    "fails": "def test_fails():\n    assert 6 * 9 == 42\n",
    "crashes": "import ctypes\n\n\ndef test_crashes():\n    ctypes.string_at(0)\n",
    "hangs": "import time\n\n\ndef test_hangs():\n    time.sleep(1000)\n",
}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("gpu_check")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    folder = tmp_path / "planted"
    folder.mkdir()
    for name, text in PLANTED.items():
        (folder / f"test_{name}.py").write_text(text)
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that puts a shell script on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return put


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain copy of the tree: what is compiled and run, without git."""
    copy = tmp_path_factory.mktemp("copy") / "cfmvit"
    copy.mkdir()
    for name in ("csrc", "cmake", "cfmvit", "triton_kernels", "bench"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def steps_of(out: Path, command: str = "first") -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in json.loads((out / f"{command}.json").read_text())["steps"]}


def when(log: Path, *texts: str) -> None:
    """Wait until all texts are in a log, however slow the machine."""
    while not (log.exists() and all(text in log.read_text() for text in texts)):
        time.sleep(0.05)


def test_tests_that_fail_crash_or_hang_leave_name_and_traceback(
    check: ModuleType, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Any
) -> None:
    out = tmp_path / "out"

    class WhenItHangs(threading.Thread):
        """Time is up for the test that hangs when it has told where it is."""

        def __init__(self, seconds: float, stop: Callable[..., None], arguments: list[Any]) -> None:
            super().__init__(target=self.wait, args=(stop, *arguments), daemon=True)
            self.over = threading.Event()

        def wait(self, stop: Callable[..., None], process: Any, *others: Any) -> None:
            if any("test_hangs" in word for word in process.args):
                when(out / "first.log", "Timeout (", "in test_hangs")
                stop(process, *others)
            else:
                self.over.wait()

        def cancel(self) -> None:
            self.over.set()

    monkeypatch.setattr("gpu_steps.threading.Timer", WhenItHangs)
    programs("compute-sanitizer", "echo ========= Invalid __global__ read of size 4 bytes; exit 9")
    words = ["first", str(out), "abc123", "--dry", "--only", "test,sanitize", "--tests", str(planted)]
    assert check.main([*words, "--hang", "0.5", "--at-once", "4"]) == 1

    steps, log = steps_of(out), (out / "first.log").read_text()
    fails, crashes, hangs = (steps[f"planted/test_{name}"] for name in ("fails", "crashes", "hangs"))
    assert steps["planted/test_passes"]["status"] == "passed"
    assert fails["status"] == "failed (1)"
    assert any("FAILED" in line and "::test_fails - assert (6 * 9) == 42" in line for line in fails["wrong"])
    assert crashes["status"] == "crashed (SIGSEGV)" and "test_crashes.py::test_crashes" in crashes["last"]
    assert 'test_crashes.py", line 5 in test_crashes' in log
    assert hangs["status"].startswith("over ") and "test_hangs.py::test_hangs" in hangs["last"]
    assert 'test_hangs.py", line 5 in test_hangs' in log
    assert steps["memcheck ops"]["status"] == "failed (9)" and "Invalid" in steps["memcheck ops"]["wrong"][0]
    summary = (out / "summary.md").read_text()
    for text in ("abc123", "(6 * 9) == 42", "crashed (SIGSEGV)", "Invalid __global__ read"):
        assert text in summary


def test_what_is_interrupted_leaves_what_it_had(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["first", out, "--dry", "--only", "test", "--tests", planted, "--at-once", "1", "--hang", "0.5"]
    script = [ROOT / "bench" / "gpu_check.sh", *words]
    environment = {**os.environ, "PYTHON": sys.executable}
    with subprocess.Popen(list(map(str, script)), env=environment, stdout=subprocess.DEVNULL) as process:
        when(out / "first.log", "test_hangs.py::test_hangs")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 1
    steps = steps_of(out)
    assert steps["planted/test_fails"]["status"] == "failed (1)"
    assert steps["planted/test_hangs"]["status"] == "interrupted"
    assert steps["planted/test_passes"]["status"] == "interrupted", "which would come next"
    assert "KeyboardInterrupt" in (out / "first.log").read_text()
    assert "| planted/test_hangs | interrupted |" in (out / "summary.md").read_text()


@pytest.mark.parametrize("tools", [True, False], ids=["pip", "bare"])
def test_a_failed_build_stops_it_with_the_compilers_words(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Any, tools: bool
) -> None:
    for name in ("g++", "c++"):
        programs(name, "echo 'masking.h:7:1: error: planted is not a type' >&2; exit 1")
    monkeypatch.setenv("CXX", "g++")
    if tools:
        pytest.importorskip("scikit_build_core")
    else:
        (tmp_path / "sitecustomize.py").write_text("import sys\n\nsys.modules['scikit_build_core'] = None\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHON", sys.executable)
    script, out = str(copied / "bench" / "gpu_check.sh"), tmp_path / "out"
    done = subprocess.run([script, "first", str(out), "--dry"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    steps = steps_of(out)
    assert list(steps) == ["build"] and steps["build"]["status"].startswith("failed")
    assert any("error: planted is not a type" in line for line in steps["build"]["wrong"])
    assert ("build_bare.py" in done.stdout) != tools
    assert "planted is not a type" in (out / "summary.md").read_text()


FAKE_NCU = 'while [ "$1" != --log-file ]; do shift; done; echo ID,Kernel >"$2"; echo "$@"'


def test_measurements_and_counters_lie_in_one_folder(
    check: ModuleType, tmp_path: Path, programs: Any
) -> None:
    programs("ncu", FAKE_NCU)
    out = tmp_path / "out"
    words = ["second", str(out), "abc123", "--dry", "--only", "masking,forms,ncu", "--ops", "gather_tokens"]
    assert check.main(words) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("bench.json", "ncu.csv", "second.json", "second.log", "summary.md"),
    ]
    found = json.loads((out / "bench.json").read_text())
    assert found["machine"]["commit"] == "abc123"
    assert {x["pass"] for x in found["results"]} == {"forward", "backward", "both"}
    assert (out / "ncu.csv").read_text() == "ID,Kernel\n"
    assert steps_of(out, "second")["ncu masking"]["last"].startswith("--log-file ")
    wanted = r"--log-file \S+ncu-masking\.csv .* --ncu --device cpu --size tiny gather_tokens$"
    assert re.search(wanted, (out / "second.log").read_text(), re.MULTILINE)
    assert "| `gather_tokens` | B3 N16 D24 | both |" in (out / "summary.md").read_text()


def test_kernels_of_a_call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels", "--device", "cpu", "--size", "tiny,absent", "gather_tokens"])
    kernels.main()
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert {"cfmvit::gather_tokens", "cfmvit::gather_tokens_backward"} <= {
        row["kernel"] for row in found["gather_tokens tiny"]
    }


@pytest.mark.long
def test_both_go_through_on_a_cpu(check: ModuleType, planted: Path, tmp_path: Path, programs: Any) -> None:
    """All parts but the build."""
    programs("compute-sanitizer", "exit 0")
    programs("ncu", FAKE_NCU.replace('echo "$@"', 'shift 2; exec "$@"'))
    out, parts = tmp_path / "out", {"first": check.FIRST, "second": check.SECOND}
    for command, shares in parts.items():
        words = [command, str(out), "abc123", "--dry", "--only", ",".join(shares.keys() - {"build"})]
        words += ["--tests", str(planted / "test_passes.py"), "--seconds", "3000"]
        words += ["--ops", "gather_tokens,info_nce"] if command == "first" else []  # a process each
        assert check.main(words) == 0, (out / "summary.md").read_text()
    assert len(list(out.iterdir())) <= 8
    summary = (out / "summary.md").read_text()
    for op in check.ALL:
        assert f"| `{op}` |" in summary


def test_ops_are_those_of_the_benchmark(check: ModuleType) -> None:
    entries = load()
    measured = {name for name in entries if f"call_{name}" in entries}
    assert {op: family for family, ops in check.OPS.items() for op in ops} == {
        name: entries[name].family for name in measured
    }
    summary = importlib.import_module("gpu_summary")
    assert all(size in entries[op].sizes for op, size, _ in [*summary.TIMES_FLOOR, *summary.SECONDS])


@pytest.mark.parametrize(
    ("op", "size", "seconds", "of_floor", "held"),
    [
        ("info_nce", "32768x768", 10.9e-3, 0.7, "<= 11 ms: holds"),
        ("info_nce", "32768x768", 11.1e-3, 0.7, "<= 11 ms: **missed**"),
        ("masked_pixel_loss", "large", 1e-3, 0.8, "<= 1.3x floor: holds"),
        ("masked_pixel_loss", "large", 1e-3, 0.5, "<= 1.3x floor: **missed**"),
    ],
)
def test_targets(
    check: ModuleType, tmp_path: Path, op: str, size: str, seconds: float, of_floor: float, held: str
) -> None:
    ours = {"seconds": {"p50": seconds}, "warm_seconds": {"p50": seconds}, "of_floor": of_floor}
    result = {"op": op, "size": size, "pass": "both", "family": "", "shape": {"B": 1}, "ratios": {}}
    record = {"results": [{**result, "implementations": {"cfmvit": ours}}]}
    (tmp_path / "bench.json").write_text(json.dumps(record))
    (tmp_path / "second.json").write_text("{ cut off")
    summary = importlib.import_module("gpu_summary").summary(tmp_path)
    assert held in summary and " ms / " in summary


def test_files_with_tests_of_a_gpu_import_nothing_that_a_bare_machine_may_lack() -> None:
    """Else none of their tests runs there; what a test takes from `importorskip` skips that test alone."""
    bare = {"cfmvit", "tests", "torch", "numpy", "pytest", "packaging", *sys.stdlib_module_names}
    files = [path for name in ("ops", "models") for path in (ROOT / "tests" / name).glob("*.py")]
    assert files
    for path in files:
        named = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert set(named) <= bare, path


def test_no_gpu_is_said(check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if check.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert check.main(["first", str(tmp_path / "out")]) == 2
    assert "no GPU to check: " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_op_without_a_kernel_fails_the_smoke_test(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["smoke", "--device", "cpu", "random_masking"])
    assert smoke.main() == 0
    monkeypatch.setattr(smoke, "choices", lambda device: {"random_masking": ("reference", ["no library"])})
    assert smoke.main() == 1
    assert "ERROR random_masking: no kernel for cpu tensors: no library" in capsys.readouterr().out
