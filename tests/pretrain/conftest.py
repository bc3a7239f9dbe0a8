"""Data that the tests of pretraining share."""

from __future__ import annotations

import pytest

pytest.importorskip("timm")

from .small_run import make_data


@pytest.fixture(scope="package")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_data(tmp_path_factory.mktemp("scenes") / "data")
