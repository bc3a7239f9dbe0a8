"""Optional packages: imported where they are used, and named by the extra that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str = "", package: str = "") -> ModuleType:
    """Import ``module`` or say which extra of this package, or which other package, installs it.

    Raises:
        ImportError: the module, or one that it imports, is absent or broken; the message names that one.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision beside another torch than its own raises RuntimeError
        wanted = package or f"cfmvit[{extra}]"
        raise ImportError(
            f'cfmvit: this function needs {_what_is_wrong(module, error)}; install it with: pip install "{wanted}"',
            name=getattr(error, "name", None),
        ) from error


def _what_is_wrong(module: str, error: Exception) -> str:
    wanted = module.partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return f"{wanted}, which can't be imported ({type(error).__name__}: {error})"
    missing = error.name.partition(".")[0]
    if missing == wanted:
        return wanted if error.name == wanted else f"{wanted} ({error})"
    return f"{missing}, which {wanted} imports"
