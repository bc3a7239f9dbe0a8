"""Optional packages: imported where they are used, and named by the extra that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module`` or say which extra of this package installs it.

    Raises:
        ImportError: the module is absent (or broken); the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'cfmvit: this function needs {package} ({error}); install it with: pip install "cfmvit[{extra}]"'
        ) from error
