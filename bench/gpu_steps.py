"""Commands run within a time of their own, side by side, each line of theirs in one log as it comes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A program that is stopped may still say something: an interrupted pytest its failures, an aborted Python its traceback.
PATIENCE = ((signal.SIGINT, 8.0), (signal.SIGABRT, 4.0), (signal.SIGKILL, 0.0))
# Lines that say what went wrong, of compilers, pytest, Python, CUDA and compute-sanitizer.
WRONG = re.compile(
    r"^(FAILED|ERROR) |Fatal Python error|\berror ?:|\w(Error|Exception|Interrupt)\b|CUDA error|undefined reference"
    r"|ptxas fatal|========= (Invalid|Error|Race)"
)
MOST_LINES = 20
TEST = re.compile(r"\S+\.py::\S+")


@dataclass
class Step:
    """How a command ended; ``wrong`` holds the first lines that say why it failed, ``found`` the JSON of its last line."""

    name: str
    status: str = "passed"
    seconds: float = 0.0
    last: str = ""
    wrong: list[str] = field(default_factory=list)
    found: Any = None

    @property
    def failed(self) -> bool:
        """Neither passed nor skipped."""
        return not self.status.startswith(("passed", "skipped"))


@dataclass
class Job:
    """A command, and what is added to the environment for it."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    fine: dict[int, str] = field(default_factory=dict)  # codes that are no failure: what they mean


class Runner:
    """Runs commands from ``folder``; ``interrupt`` ends those that run, and all that would. ``ended`` is told of each step."""

    def __init__(
        self, log: Path, folder: Path, environment: dict[str, str], ended: Callable[[Step], None]
    ) -> None:
        self.folder, self.environment, self.ended = folder, environment, ended
        self.log = log.open("w", buffering=1, errors="replace")
        self.lock, self.interrupted = threading.Lock(), False
        self.running: set[subprocess.Popen[str]] = set()
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        """Write a line to the log and to the standard output."""
        with self.lock:
            line = f"{time.monotonic() - self.start:6.1f} {text}"
            self.log.write(line + "\n")
            print(line, flush=True)

    def run_all(self, jobs: Sequence[Job], seconds: float, at_once: int = 1) -> list[Step]:
        """Run commands, so many at once; those that run after ``seconds`` are stopped, which may take `PATIENCE`."""
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(self._run, job, end) for job in jobs]
            try:
                wait(futures)
            except KeyboardInterrupt:
                self.interrupt()
                wait(futures)
        return [future.result() for future in futures]

    def interrupt(self) -> None:
        """End what runs, gently at first."""
        self.interrupted = True
        for thread in [threading.Thread(target=stop, args=(process,)) for process in list(self.running)]:
            thread.start()

    def _run(self, job: Job, end: float) -> Step:
        step, seconds = Step(job.name), end - time.monotonic()
        if self.interrupted or seconds <= 0:
            step.status = "interrupted" if self.interrupted else "not begun: no time was left"
        else:
            self._follow(job, step, seconds)
        with self.lock:
            self.ended(step)
        return step

    def _follow(self, job: Job, step: Step, seconds: float) -> None:
        begin = time.monotonic()
        self.say(f"== {job.name}, at most {seconds:.0f} s: {shlex.join(job.command)}")
        process = subprocess.Popen(
            job.command, cwd=self.folder, env={**self.environment, **job.environment}, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.running.add(process)
        timer = threading.Timer(seconds, self._time_is_up, [process, step, f"over {seconds:.0f} s"])
        timer.start()
        test = ""
        assert process.stdout is not None
        with process.stdout as lines:
            for line in map(str.rstrip, lines):
                self.say(f"{job.name}| {line}")
                step.last = line or step.last
                test = found[0] if (found := TEST.search(line)) else test
                if WRONG.search(line) and len(step.wrong) < MOST_LINES:
                    step.wrong.append(line[:300])
        code = process.wait()
        self.running.discard(process)
        timer.cancel()
        step.seconds = round(time.monotonic() - begin, 1)
        over = step.status != "passed"
        if code == 0 and not over:
            with suppress(ValueError):
                step.found = json.loads(step.last) if step.last.startswith("{") else None
            step.last = "" if step.found is not None else step.last.strip("= ")[:200]
            return
        how = job.fine.get(
            code, f"crashed ({signal.Signals(-code).name})" if code < 0 else f"failed ({code})"
        )
        step.status = "interrupted" if self.interrupted else step.status if over else how
        step.last = (f"in {test}: " if test and (over or code < 0) else "") + step.last.strip("= ")[:200]

    def _time_is_up(self, process: subprocess.Popen[str], step: Step, status: str) -> None:
        step.status = status
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Interrupt a program and all that it started, then ask for its traceback, then kill."""
    for sign, patience in PATIENCE:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            sign = signal.SIGKILL
        if sign == signal.SIGKILL:
            break
    with suppress(ProcessLookupError):  # what it left behind would hold its output open
        os.killpg(process.pid, signal.SIGKILL)
