"""Each test starts with nothing said."""

from __future__ import annotations

import pytest

from cfmvit.integrations import _fallback


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fallback, "_said", set())
