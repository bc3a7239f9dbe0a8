"""Fixtures that every part uses."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the checkout; tests that need them are skipped where they are absent."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.resolve()}")
    return folder.resolve()
