"""Packages that hand on names of their modules without importing these: who needs one of them does not pay for torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def hand_on(
    package: str, names: Mapping[str, Collection[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``, by which a name is imported when it is first asked for.

    Args:
        names: by the module that has them; a name of ``__all__`` beside these is a module of the package.
    """
    homes = {name: module for module, found in names.items() for name in found}

    def get(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        if name in sys.modules[package].__all__:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(sys.modules[package].__all__)
