"""Attributes of other libraries, replaced and put back."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any

_MISSING = object()
# What an attribute was before the first patch of it, and how many patches hold it: patches may end in any order.
_held: dict[tuple[int, str], list[Any]] = {}


class Patch:
    """Attributes replaced from now on, until `remove` is called or the `with` block ends, with or without an exception.

    Args:
        replacements: (owner, name, value) of each attribute.
    """

    def __init__(self, replacements: Iterable[tuple[Any, str, Any]]) -> None:
        self._places = []
        for owner, name, value in replacements:
            held = _held.setdefault((id(owner), name), [vars(owner).get(name, _MISSING), 0, owner])
            held[1] += 1
            setattr(owner, name, value)
            self._places.append((owner, name))

    def remove(self) -> None:
        """Put back what was there, unless another patch still holds it. A second call does nothing."""
        while self._places:
            owner, name = self._places.pop()
            held = _held[id(owner), name]
            held[1] -= 1
            if held[1]:
                continue
            del _held[id(owner), name]
            if held[0] is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, held[0])

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def original(owner: Any, name: str) -> Any:
    """Return an attribute as it is without patches."""
    held = _held.get((id(owner), name))
    return getattr(owner, name) if held is None or held[0] is _MISSING else held[0]


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
