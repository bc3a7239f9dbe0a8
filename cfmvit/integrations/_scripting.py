"""What `torch.jit.script` makes of a drop-in: the original, so that what is saved is loaded without this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from cfmvit._require import require
from cfmvit.integrations._patch import original

Function = TypeVar("Function", bound=Callable[..., Any])


def scripted_as(module: str, package: str = "torchvision") -> Callable[[Function], Function]:
    """Have the function of that name in `module` compiled in the place of the one that is decorated."""

    def decorate(function: Function) -> Function:
        name = function.__name__
        theirs = lambda: original(require(module, package=package), name)
        function.__prepare_scriptable__ = theirs  # type: ignore[attr-defined]
        return function

    return decorate
