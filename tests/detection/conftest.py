"""Fixtures of the detection tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

for package in ("timm", "torchvision", "PIL"):
    pytest.importorskip(package)
from cfmvit.detection import Detector  # noqa: E402

from .small_detector import small_config, small_model  # noqa: E402


@pytest.fixture
def make_detector() -> Callable[..., Detector]:
    """Return a function that makes a small detector, always with the same weights."""

    def make(**overrides: object) -> Detector:
        model = small_model()
        torch.manual_seed(1)
        return Detector(model, small_config(**overrides))

    return make
