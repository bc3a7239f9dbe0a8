"""What the tests of all families of ops share."""

from __future__ import annotations

import pytest
import torch

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Where the test's ops run: the CPU, and the GPU where there is one."""
    return request.param
