"""Fixtures of the tests of evaluation."""

from __future__ import annotations

import pytest


@pytest.fixture
def batches_of_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are matched a few at a time, and masks of many of them are scattered."""
    engine = pytest.importorskip("cfmvit.evaluation.engine")
    monkeypatch.setattr(engine, "_BATCH", 7)
