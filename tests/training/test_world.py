"""Runs of several processes: killed and resumed, on other numbers of them, and what is said where one is missing."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.models import CFMViT
from cfmvit.pretrain import OptimConfig, PretrainConfig, pretrain
from cfmvit.pretrain.gradients import ContrastiveGradients
from cfmvit.training import LoopConfig, MissingRankError, World, join
from tests.processes import run_ranks

STEPS = 14
TINY = {
    "width": 32,
    "heads": 2,
    "depth": 1,
    "text_width": 32,
    "text_heads": 2,
    "text_depth": 1,
    "decoder_width": 32,
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    root, none = tmp_path_factory.mktemp("scenes") / "data", SplitConfig(images=0, size=64)
    return f"lvis:{make_scenes(root, ScenesConfig(pretrain=SplitConfig(images=60, size=64), train=none, val=none))}"


def config(data: str, **options: Any) -> PretrainConfig:
    return PretrainConfig(
        **{
            "data": data,
            "model": "cfm_vit_tiny",
            "model_options": dict(TINY),
            "vocab_size": 400,
            "batch_size": 8,
            "device": "cpu",
            "optim": OptimConfig(lr=2e-3, warmup=2),
            "loop": LoopConfig(steps=STEPS, log_every=1, save_every=3, timeout=30),
            **options,
        }
    )


def _enter(rank: int, size: int, port: int) -> None:
    """Be a rank as torchrun makes one."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def _run(
    rank: int, size: int, port: int, data: str, output: str, resume: bool, dies: tuple[int, ...], at: int
) -> None:
    """Pretrain; the ranks ``dies`` are killed in step ``at`` of this start."""
    torch.set_num_threads(1)
    _enter(rank, size, port)
    real, calls = ContrastiveGradients.__call__, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > at and rank in dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    ContrastiveGradients.__call__ = stopping  # type: ignore[method-assign]
    try:
        pretrain(config(data), Path(output), resume=resume)
    except MissingRankError as error:
        Path(f"{output}-{rank}.error").write_text(str(error))
        os._exit(3)


def launch(size: int, *arguments: Any) -> list[int]:
    """Run ``_run`` in processes; return their exit codes."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["pytest", "cfmvit.pretrain", "torch.utils.tensorboard"]
    )
    context = multiprocessing.start_processes(
        _run, (size, _free_port(), *arguments), nprocs=size, join=False, start_method="forkserver"
    )
    for process in context.processes:
        process.join(120)
    return [process.exitcode for process in context.processes]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return CFMViT.from_pretrained(folder / "model").state_dict()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(scenes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert launch(2, scenes, str(folder), False, (), 0) == [0, 0]
    return folder


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.long)])
def test_a_killed_run_resumes_bit_for_bit(whole: Path, scenes: str, tmp_path: Path, kills: int) -> None:
    """One rank or both are killed in any step, again and again."""
    rng, killed, rounds = random.Random(kills), 0, 0
    while killed < kills:
        folder = tmp_path / f"run-{(rounds := rounds + 1)}"
        finished = False
        while not finished:
            resume = (folder / "checkpoint.pt").exists()
            dies = rng.choice([(0,), (1,), (0, 1)])
            codes = launch(2, scenes, str(folder), resume, dies, rng.randrange(STEPS + 1))
            finished = codes == [0, 0]
            if not finished:
                killed += 1
                assert all(
                    code == (-signal.SIGKILL if rank in dies else 3) for rank, code in enumerate(codes)
                )
        expected, found = weights(whole), weights(folder)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert losses(folder) == losses(whole)


def test_another_number_of_processes_goes_on_alike(whole: Path, scenes: str, tmp_path: Path) -> None:
    """Stopped with two processes, gone on with by one: the same batches, and losses that differ by rounding alone."""
    folder = tmp_path / "run"
    assert launch(2, scenes, str(folder), False, (1,), 8) == [3, -signal.SIGKILL]
    assert Path(f"{folder}-0.error").read_text().startswith("rank 1 of 2 did not answer at step 8: ")
    pretrain(config(scenes), folder, resume=True)
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-4)


def test_others_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(RuntimeError, match=r"WORLD_SIZE is 2, but its processes can't meet: .*RANK"),
        join("cpu"),
    ):
        pass
    for name, value in {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"can't meet: .*1/2 clients joined"), join("cpu", limit=1):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE must be a number, got 'two'"), join("cpu"):
        pass


def _agree(rank: int, size: int, port: int) -> None:
    _enter(rank, size, port)
    with (
        pytest.raises(ValueError, match="device must be auto, cpu or cuda with several processes"),
        join("cuda:0"),
    ):
        pass
    with join("cpu", limit=2) as world:
        assert (world.rank, world.size, world.main) == (rank, size, rank == 0)
        assert world.gather(rank) == [0, 1]
        assert world.from_main(lambda: {"made by": rank}) == {"made by": 0}
        assert world.share(torch.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]][rank]
        # An error of one rank is everybody's, in its words and kind.
        with (
            pytest.raises(FileNotFoundError, match=r"^rank 1: no shard" if rank == 0 else "no shard"),
            world.together(),
        ):
            if rank == 1:
                raise FileNotFoundError("no shard")
        with pytest.raises(KeyError, match="alike"), world.together():
            raise KeyError("alike")
        with pytest.raises(ZeroDivisionError), world.together():
            world.from_main(lambda: 1 / 0)
        # A rank that hangs is named by those that wait.
        world.doing = "step 7"
        if rank == 1:
            time.sleep(9)
        else:
            with (
                pytest.raises(MissingRankError, match="rank 1 of 2 did not answer at step 7: "),
                world.together(),
            ):
                pass


def test_ranks_agree(tmp_path: Path) -> None:
    run_ranks(_agree, 2, _free_port(), imports=["cfmvit.training"])


def test_alone_nothing_is_asked() -> None:
    with join("cpu") as world:
        assert isinstance(world, World) and world.main and world.group is None
        assert world.gather(3) == [3] and world.most(4) == 4
