"""Metrics of a run: one JSON object a line, and TensorBoard events beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cfmvit._io import atomic_write, disk_errors
from cfmvit._require import require


class MetricsLog:
    """Append metrics to ``metrics.jsonl`` and to TensorBoard.

    Args:
        output: the run's folder.
        start: first step that this process will log. Lines of that step and later ones, left by a run that went on
            after its last checkpoint, are dropped, so that a resumed log has each step once.
    """

    def __init__(self, output: Path, start: int) -> None:
        self._path = output / "metrics.jsonl"
        kept = [record for record in read_metrics(self._path) if record["step"] < start] if start else []
        with atomic_write(self._path, "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self._file = self._path.open("a", encoding="utf-8")
        tensorboard = require("torch.utils.tensorboard", extra="models")
        self._events = tensorboard.SummaryWriter(str(output / "tensorboard"), purge_step=start)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of one step."""
        with disk_errors(self._path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``; a last line that a killed run left half-written is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
