"""Run pytest on another build of the native core: python with_core.py CORE.so [pytest's arguments]."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch  # noqa: F401  the core's libraries

import cfmvit  # noqa: F401  the package that the core belongs to


def main(core: str, *arguments: str) -> int:
    """Import `core` as cfmvit._C, before anything else can, and run the tests."""
    spec = importlib.util.spec_from_file_location("cfmvit._C", core)
    module = sys.modules["cfmvit._C"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return pytest.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
