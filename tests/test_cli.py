"""The command: one line for an error that a user can act on, a traceback only on demand."""

from __future__ import annotations

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
        (["detect", "nowhere.jpg", "--labels", "cup"], "no image at nowhere.jpg"),
    ],
)
def test_what_is_missing_is_named(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cfmvit.pretrain.pretrain", stop)
    assert main(["pretrain", "data=coco:x"]) == 130
    assert "--resume goes on from the last checkpoint" in capsys.readouterr().err
