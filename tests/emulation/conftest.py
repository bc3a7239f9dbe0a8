"""One program per family and session."""

from __future__ import annotations

import pytest

from .emulator import Emulator


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Emulator]:
    """The programs by family; each is compiled when a test first runs it."""
    folder = tmp_path_factory.mktemp("emulation")
    return {family: Emulator(family, folder) for family in ("masking", "planted")}


@pytest.fixture
def masking(emulators: dict[str, Emulator]) -> Emulator:
    return emulators["masking"]


@pytest.fixture
def planted(emulators: dict[str, Emulator]) -> Emulator:
    return emulators["planted"]
