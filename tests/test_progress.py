"""The one line of progress that long work has."""

from __future__ import annotations

import io
import sys

import pytest

from cfmvit.progress import progress


def test_a_log_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress(4, desc="study", unit="cell") as bar:
        for cell in "ab":
            bar.set_postfix_str(cell)
            bar.update(2)
    assert "\r" not in log.getvalue()
    lines = log.getvalue().splitlines()
    assert all(line.startswith("study:") and "cell" in line for line in lines)
    assert "100%" in lines[-1]
    assert "2/4" in log.getvalue()


def test_a_bar_below_another_leaves_a_log_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress(1, desc="study", unit="cell") as bar:
        with progress(2, desc="pretrain") as inner:
            inner.update(2)
        bar.update()
    assert "\x1b" not in log.getvalue()
    assert all(line.startswith(("study:", "pretrain:")) for line in log.getvalue().splitlines())
