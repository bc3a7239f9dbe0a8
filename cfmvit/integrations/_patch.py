"""Attributes of other libraries, replaced and put back."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from types import ModuleType, TracebackType
from typing import Any

_MISSING = object()
# What an attribute was before the first patch of it, and how many patches hold it: patches may end in any order.
_held: dict[tuple[int, str], list[Any]] = {}

Replacement = tuple[Any, str, Any]


class Patch:
    """Attributes replaced from now on, until `remove` is called or the `with` block ends, with or without an exception.

    A method of a class, or an object's class, is nothing that every `torch.compile` looks at again: where one is replaced or put
    back, what was compiled is forgotten, and compiled again when it is called. So enter such a patch once, around the whole training.

    Args:
        replacements: (owner, name, value) of each attribute. A value for "__class__" is a subclass of the owner's class.
    """

    def __init__(self, replacements: Iterable[Replacement]) -> None:
        self._places: list[Replacement] = []
        for owner, name, value in replacements:
            held = _held.setdefault((id(owner), name), [_before(owner, name, value), 0, owner])
            held[1] += 1
            setattr(owner, name, value)
            self._places.append((owner, name, value))
        _forget_compiled(self._places)

    def remove(self) -> None:
        """Put back what was there, unless another patch still holds it. A second call does nothing."""
        places, self._places = self._places, []
        restored = []
        for owner, name, value in reversed(places):
            held = _held[id(owner), name]
            held[1] -= 1
            if held[1]:
                continue
            del _held[id(owner), name]
            restored.append((owner, name, value))
            if held[0] is _MISSING:
                delattr(owner, name)
            elif name == "__class__" and type(owner) is not value:
                warnings.warn(
                    f"remove: the class of {value.__name__} became {type(owner).__name__} after install and is left as it is",
                    stacklevel=2,
                )
            else:
                setattr(owner, name, held[0])
        _forget_compiled(restored)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def original(owner: Any, name: str, *default: Any) -> Any:
    """Return an attribute as it is without patches; the default, if one is given, where there is none."""
    held = _held.get((id(owner), name))
    return getattr(owner, name, *default) if held is None or held[0] is _MISSING else held[0]


def references(values: Iterable[Any], packages: Iterable[str]) -> list[tuple[Any, str]]:
    """Find where the loaded modules of `packages` hold one of `values` under some name: (module, name) of each."""
    wanted, roots = tuple(values), tuple(packages)
    return [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] in roots
        for name, held in list(getattr(module, "__dict__", {}).items())
        if any(held is value for value in wanted)
    ]


def existing(library: ModuleType, replacements: Iterable[Replacement]) -> list[Replacement]:
    """Return the replacements whose attribute there is, and warn about those that this version of `library` has not."""
    replacements = list(replacements)
    found = [some for some in replacements if hasattr(some[0], some[1])]
    missing = [f"{owner.__name__}.{name}" for owner, name, _ in replacements if not hasattr(owner, name)]
    if missing:
        version = getattr(library, "__version__", "of unknown version")
        left = "only the rest is replaced" if found else "nothing is replaced"
        warnings.warn(
            f"install: {library.__name__} {version} has no {', '.join(missing)}: {left}", stacklevel=3
        )
    return found


def _before(owner: Any, name: str, value: Any) -> Any:
    return value.__base__ if name == "__class__" else vars(owner).get(name, _MISSING)


def _forget_compiled(places: Iterable[Replacement]) -> None:
    """Reset `torch.compile` where a class's own attribute changed, or, for torch 2.11, an object's class: it guards globals alone."""
    if "torch._dynamo" in sys.modules and any(
        isinstance(owner, type) or name == "__class__" for owner, name, _ in places
    ):
        sys.modules["torch"].compiler.reset()
