"""The tensors of a checkpoint, taken one by one: what is missing, of another shape or left over is named, all at once."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_SHOWN = 6


class Source:
    """A state dict that is emptied as it is read.

    Args:
        tensors: name to tensor; not changed.
        origin: what to call it in errors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        self.origin = origin
        self._left = dict(tensors)
        self._missing: list[str] = []
        self._misshapen: list[str] = []
        self._unsound: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that tells the architecture.

        Raises:
            ValueError: it is not there.
        """
        if name not in self._left:
            raise ValueError(f"import: {self.origin} must hold {name}, got none; {self._some(self._left)}")
        return tuple(self._left[name].shape)

    def count(self, pattern: str) -> int:
        """Return how many different numbers the group of ``pattern`` has among the names."""
        found = (re.match(pattern, name) for name in self._left)
        return len({match[1] for match in found if match})

    def take(self, name: str, *shape: int) -> Tensor:
        """Take a tensor as float32; zeros stand for one that ``finish`` will complain about."""
        tensor = self._left.pop(name, None)
        if tensor is None:
            self._missing.append(f"{name} {shape}")
        elif tuple(tensor.shape) != shape:
            self._misshapen.append(f"{name} must have the shape {shape}, got {tuple(tensor.shape)}")
        elif not tensor.is_floating_point():
            self._misshapen.append(f"{name} must be floating-point, got {tensor.dtype}")
        else:
            found = tensor.detach().to(device="cpu", dtype=torch.float32)
            if found.isfinite().all():
                return found
            self._unsound.append(name)
        return torch.zeros(shape)

    def drop(self, pattern: str) -> None:
        """Leave out the tensors whose names match, which an imported model has no use for."""
        self._left = {name: tensor for name, tensor in self._left.items() if not re.fullmatch(pattern, name)}

    def finish(self) -> None:
        """End the reading.

        Raises:
            ValueError: tensors are missing, have other shapes, are not finite or are left over.
        """
        complaints = [
            f"{title} {self._some(names)}"
            for title, names in (
                ("missing:", self._missing),
                ("of another shape or type:", self._misshapen),
                ("NaN or infinite:", self._unsound),
                ("unknown:", sorted(self._left)),
            )
            if names
        ]
        if complaints:
            raise ValueError(f"import: {self.origin} does not fit its architecture; {'; '.join(complaints)}")

    @staticmethod
    def _some(names: Mapping[str, Tensor] | list[str]) -> str:
        listed = list(names)
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        return ", ".join(listed[:_SHOWN]) + more
