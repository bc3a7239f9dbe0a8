"""Samples that are taken although something about them is odd: all are counted, the first ones are named."""

from __future__ import annotations

import logging
from collections.abc import Sequence

_LOG = logging.getLogger(__name__)
_NAMED = 10


class Remarks:
    """What was odd about which samples; ``len`` is how many there were."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def note(self, key: str, remarks: Sequence[str]) -> None:
        """Count a sample that there are remarks on, once; log what they are while there are few such samples."""
        if not remarks or key in self._keys:
            return
        self._keys.add(key)
        if len(self) <= _NAMED:
            for remark in remarks:
                _LOG.warning("%s: %s", key, remark)
        if len(self) == _NAMED:
            _LOG.warning("further odd samples are counted, not named")
