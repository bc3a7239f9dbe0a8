"""Optional packages: imported where they are used, and named by the extra that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str = "", package: str = "") -> ModuleType:
    """Import ``module`` or say which extra of this package, or which other package, installs it.

    Raises:
        ImportError: the module is absent (or broken); the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name, wanted = module.partition(".")[0], package or f"cfmvit[{extra}]"
        raise ImportError(
            f'cfmvit: this function needs {name} ({error}); install it with: pip install "{wanted}"'
        ) from error
