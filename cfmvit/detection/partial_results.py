"""Results that are written image by image, so that a prediction that is broken off loses none."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cfmvit._io import atomic_write, disk_errors
from cfmvit._lock import HeldError, held

RESULTS, PARTIAL = "results.json", "results.partial.jsonl"
_LOCK = ".predict.lock"
_SYNC_SECONDS = 10.0


class PartialResults:
    """A prediction's results on their way to ``results.json``, in ``results.partial.jsonl`` beside it.

    Its first line holds the run's settings; each of the others is the json list of one image's detections. A line that a
    killed process left half-written is dropped, and what follows it.

    Args:
        folder: where both files lie.
        settings: what the results depend on; those of a file that is there must be the same.
        overwrite: begin anew where there is a file of another run.

    Attributes:
        done: for how many images there are results.

    Raises:
        ValueError: the folder holds unfinished results of other settings; the message names those.
        RuntimeError: another process is predicting into the folder; the message says which, on which machine.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], *, overwrite: bool = False) -> None:
        self._path, self._target = folder / PARTIAL, folder / RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            try:
                opened.enter_context(held(folder / _LOCK))
            except HeldError as holder:
                raise RuntimeError(
                    f"predict: {holder} is predicting into {folder}; --output names another folder"
                ) from None
            self._file = opened.enter_context(open(self._path, "a+b"))
            self.done = self._go_on(dict(settings), overwrite)
            self._opened = opened.pop_all()
        self._synced = time.monotonic()

    def add(self, detections: list[dict[str, Any]]) -> None:
        """Write the results of the next image."""
        with disk_errors(self._path):
            self._file.write(json.dumps(detections).encode() + b"\n")
            self._file.flush()
            if (
                time.monotonic() - self._synced > _SYNC_SECONDS
            ):  # against a power failure; a kill loses nothing
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self.done += 1

    def finish(self) -> Path:
        """Write ``results.json``, whole or not at all, remove the partial file, and return the path."""
        self._file.seek(0)
        self._file.readline()
        with atomic_write(self._target) as whole:
            whole.write(b"[")
            separator = b"\n"
            for line in self._file:
                if line != b"[]\n":
                    whole.write(separator + line[1:-2])
                    separator = b",\n"
            whole.write(b"\n]\n")
        self._path.unlink()
        self.close()
        return self._target

    def close(self) -> None:
        """Leave the partial file to the next run."""
        self._opened.close()

    def _go_on(self, settings: dict[str, str], overwrite: bool) -> int:
        """Return how many images are done, with the file at the end of the last of them."""
        self._file.seek(0)
        found = _settings(self._file.readline())
        if found == settings:
            return self._keep_whole_lines()
        if found is not None and not overwrite:
            differ = [key for key in {**found, **settings} if found.get(key) != settings.get(key)]
            raise ValueError(
                f"predict: {self._path} holds unfinished results of another run, of which {' and '.join(differ)} "
                f"{'differs' if len(differ) == 1 else 'differ'}; --overwrite begins anew, --output names another folder"
            )
        self._file.truncate(0)
        self._file.write(json.dumps({"settings": settings}).encode() + b"\n")
        self._file.flush()
        return 0

    def _keep_whole_lines(self) -> int:
        done, end = 0, self._file.tell()
        for line in self._file:
            # A power failure may leave zeros where data was to come.
            if not (line.startswith(b"[") and line.endswith(b"]\n")) or b"\0" in line:
                break
            done, end = done + 1, end + len(line)
        self._file.truncate(end)
        return done


def _settings(line: bytes) -> dict[str, str] | None:
    """Return what a first line says, or None where it is no whole one: then nothing can have followed it."""
    try:
        return dict(json.loads(line)["settings"]) if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None
