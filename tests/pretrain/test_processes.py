"""A pretraining in several processes: killed and resumed, asked to stop, on other numbers of them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cfmvit.pretrain import PretrainConfig, pretrain
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.training import LoopConfig, MissingRankError, format_config
from cfmvit.training.checkpoint import checkpoints
from cfmvit.training.stopping import Stopped
from tests.processes import be_rank, exit_codes

from .small_run import config, losses, weights

STEPS = 14


def spread(data: str, **options: Any) -> PretrainConfig:
    """Targets are values, for which the last block is called twice."""
    loop = LoopConfig(steps=STEPS, log_every=1, save_every=3, timeout=300)
    alone = config(data)
    model_options = {**alone.model_options, "reconstruction_target": "values"}
    return replace(alone, model_options=model_options, loop=loop, **options)


def _run(
    rank: int,
    size: int,
    port: int,
    data: str,
    output: str,
    resume: bool,
    struck: tuple[int, ...],
    at: int,
    blow: signal.Signals,
    sharding: str,
) -> None:
    """Pretrain; the ranks ``struck`` are sent a signal in step ``at`` of this start."""
    be_rank(rank, size, port)
    real, calls = ContrastiveGradients.__call__, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == at + 1 and rank in struck:
            os.kill(os.getpid(), blow)
        return real(*arguments)

    ContrastiveGradients.__call__ = stopping  # type: ignore[method-assign]
    code = 0
    try:
        pretrain(spread(data, sharding=sharding), Path(output), resume=resume)
    except (MissingRankError, Stopped) as error:
        Path(f"{output}-{rank}.error").write_text(str(error))
        code = 3 if isinstance(error, MissingRankError) else 4
    # What the process that the others met in left behind is not waited for.
    os._exit(code)


def launch(
    size: int,
    data: str,
    output: Path,
    *,
    resume: bool = False,
    struck: tuple[int, ...] = (),
    at: int = 0,
    blow: signal.Signals = signal.SIGKILL,
    sharding: str = "none",
) -> list[int | None]:
    return exit_codes(_run, size, data, str(output), resume, struck, at, blow, sharding)


def assert_same_run(found: Path, whole: Path) -> None:
    mine, theirs = weights(found), weights(whole)
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs)
    assert losses(found) == losses(whole)


@pytest.fixture(scope="module")
def whole(scenes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert launch(2, scenes, folder) == [0, 0]
    return folder


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.long)])
def test_a_killed_run_resumes_bit_for_bit(whole: Path, scenes: str, tmp_path: Path, kills: int) -> None:
    """One rank or both are killed in any step, again and again."""
    rng, killed, rounds = random.Random(kills), 0, 0
    while killed < kills:
        folder, codes = tmp_path / f"run-{(rounds := rounds + 1)}", None
        while codes != [0, 0]:
            resume = bool(checkpoints(folder))
            struck = rng.choice([(0,), (1,), (0, 1)])
            codes = launch(2, scenes, folder, resume=resume, struck=struck, at=rng.randrange(STEPS + 1))
            if codes != [0, 0]:
                killed += 1
                for rank, code in enumerate(codes):
                    assert code == (-signal.SIGKILL if rank in struck else 3)
        assert_same_run(folder, whole)


@pytest.mark.long
def test_four_processes_resume_bit_for_bit(scenes: str, tmp_path: Path) -> None:
    """Sums of more than two depend on their order."""
    assert launch(4, scenes, tmp_path / "whole") == [0] * 4
    assert launch(4, scenes, tmp_path / "run", struck=(2,), at=8) == [3, 3, -signal.SIGKILL, 3]
    assert launch(4, scenes, tmp_path / "run", resume=True) == [0] * 4
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_signal_to_one_stops_all_with_a_checkpoint(whole: Path, scenes: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert launch(2, scenes, folder, struck=(1,), at=5, blow=signal.SIGTERM) == [4, 4]
    assert len(losses(folder)) == 6
    assert launch(2, scenes, folder, resume=True) == [0, 0]
    assert_same_run(folder, whole)


def test_another_number_of_processes_goes_on_alike(whole: Path, scenes: str, tmp_path: Path) -> None:
    """Stopped with two processes, gone on with by one: the same batches, and losses that differ by rounding alone."""
    folder = tmp_path / "run"
    assert launch(2, scenes, folder, struck=(1,), at=8) == [3, -signal.SIGKILL]
    assert Path(f"{folder}-0.error").read_text().startswith("rank 1 of 2 did not answer at step 8: ")
    pretrain(spread(scenes), folder, resume=True)
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-4)


def test_a_run_in_shards_is_that_of_whole_weights(whole: Path, scenes: str, tmp_path: Path) -> None:
    """To rounding; killed, it goes on bit for bit in shards, and whole in one process, from the same checkpoint."""
    assert launch(2, scenes, tmp_path / "shards", sharding="fsdp") == [0, 0]
    assert losses(tmp_path / "shards") == pytest.approx(losses(whole), rel=1e-5)
    assert launch(2, scenes, tmp_path / "run", struck=(1,), at=8, sharding="fsdp") == [3, -signal.SIGKILL]
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    assert launch(2, scenes, tmp_path / "run", resume=True, sharding="fsdp") == [0, 0]
    assert_same_run(tmp_path / "run", tmp_path / "shards")
    pretrain(spread(scenes), tmp_path / "alone", resume=True)
    assert losses(tmp_path / "alone") == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.long
def test_torchrun_starts_it(whole: Path, scenes: str, tmp_path: Path) -> None:
    """The launcher itself, whose store outlives every rank."""
    settings = [line.replace(" = ", "=", 1) for line in format_config(spread(scenes)).splitlines()]
    overrides = [line for line in settings if not line.endswith("=null")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "cfmvit", "pretrain", *overrides, "--output", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pretrain: the model is in") == 1, "rank 0 alone prints"
    assert_same_run(tmp_path / "run", whole)
