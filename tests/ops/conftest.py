"""What the tests of all families of ops share."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Where the test's ops run: the CPU, and the GPU where there is one."""
    return request.param


@pytest.fixture
def torchvision() -> ModuleType:
    """The peer of the regions family; tests beside it are skipped where it is absent."""
    return pytest.importorskip("torchvision")
