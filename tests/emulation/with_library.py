"""Run pytest with the ops of an emulated CUDA library in the CPU kernels' places: python with_library.py LIBRARY [arguments]."""

from __future__ import annotations

import sys

import pytest
import torch

import cfmvit.ops  # noqa: F401  whose CPU kernels are replaced


def main(library: str, *arguments: str) -> int:
    """Replace each kernel that the library has, and run the tests."""
    torch.ops.load_library(library)
    replaced = torch.library.Library("cfmvit", "IMPL")
    for op in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
        space, _, name = op.partition("::")
        if space == "cfmvit_emulated":
            kernel = getattr(torch.ops.cfmvit_emulated, name).default
            replaced.impl(name, kernel, "CPU", allow_override=True)
    return pytest.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
