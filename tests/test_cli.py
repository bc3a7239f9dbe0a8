"""The command: one line for an error that a user can act on, a traceback only on demand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cfmvit
from cfmvit.cli import main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == cfmvit.__version__


def test_an_error_is_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", "--results", "nowhere.json", "--annotations", "nowhere.json"]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "cfmvit evaluate: error: evaluate_results: nowhere.json does not exist\n"
    monkeypatch.setenv("CFMVIT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(command)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate"], "either --results with --annotations, or --checkpoint with --data must be given"),
        (["evaluate", "--results", "a.json"], "--annotations must be given with --results"),
        (
            ["evaluate", "--results", "a.json", "--annotations", "b.json", "--scores", "frozen"],
            "--scores can't be given with --results",
        ),
        (
            ["evaluate", "--results", "a.json", "--annotations", "b.json", "--checkpoint", "x"],
            "--checkpoint can't be given with --results",
        ),
        (["detect", "nowhere.jpg", "--labels", "cup"], "no image at nowhere.jpg"),
        (
            ["evaluate", "--checkpoint", "x", "--data", "coco:x", "--device", "gpu"],
            "device must be auto, cpu or cuda",
        ),
    ],
)
def test_what_is_missing_is_named(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("torchvision", "timm"):
        pytest.importorskip(package)
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cfmvit.pretrain.pretrain", stop)
    command = ["pretrain", "data=coco:x", "--output", str(tmp_path)]
    assert main(command) == 130
    assert capsys.readouterr().err == "cfmvit pretrain: interrupted\n"
    (tmp_path / "checkpoints" / "00000002").mkdir(parents=True)
    assert main(command) == 130
    assert "--resume goes on from the last checkpoint" in capsys.readouterr().err


def test_overrides_may_follow_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr("cfmvit.pretrain.pretrain", lambda config, *_, **__: seen.append(config))
    assert main(["pretrain", "data=coco:x", "--output", str(tmp_path), "batch_size=3"]) == 0
    assert seen[0].batch_size == 3
    for wrong in (["--batch_size=3"], ["batch_size"]):
        with pytest.raises(SystemExit):
            main(["pretrain", "data=coco:x", "--output", str(tmp_path), *wrong])
    with pytest.raises(SystemExit):
        main(["detect", "x.jpg", "--labels", "cup", "batch_size=3"])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("x"), 70, "internal error: KeyError: 'x'; this is a defect of cfmvit"),
        (IndexError("a.json\x1b[2J"), 70, r"internal error: IndexError: a.json\x1b[2J; this"),
        (MemoryError("for 9 PB"), 2, "error: out of memory for 9 PB\n"),
        (ValueError("bad\nname\x1b]0;"), 2, r"error: bad\nname\x1b]0;"),
    ],
)
def test_no_error_ends_in_a_traceback(
    error: Exception,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cfmvit.pretrain.pretrain", fail)
    assert main(["pretrain", "data=coco:x"]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    monkeypatch.setenv("CFMVIT_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["pretrain", "data=coco:x"])


def test_a_command_runs_without_standard_streams(tmp_path: Path) -> None:
    script = f"import os, sys; from cfmvit.cli import main; code = main(['info']); open({str(tmp_path / 'code')!r}, 'w').write(str(code))"
    command = f'exec {sys.executable} -c "$0" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", command, script], check=True)
    assert (tmp_path / "code").read_text() == "0"


def test_what_is_logged_of_files_moves_no_cursor() -> None:
    script = "import logging; from cfmvit.cli import main; main(['info']); logging.getLogger('cfmvit').warning('a\\x1b[2Jb')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("a\\x1b[2Jb\n")


def test_json_that_is_nested_too_deeply_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    assert main(["evaluate", "--results", str(path), "--annotations", str(path)]) == 2
    assert f"{path.name} is not valid json: it is nested too deeply" in capsys.readouterr().err
