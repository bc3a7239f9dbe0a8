"""What the processes of a run tell each other, and what is said where one is missing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from cfmvit.data import CorruptSample
from cfmvit.training import MissingRankError, World, join
from cfmvit.training.run_folder import check_same_data
from tests.processes import be_rank, free_port, run_ranks


def test_others_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(RuntimeError, match=r"WORLD_SIZE is 2, but its processes can't meet: .*RANK"),
        join("cpu"),
    ):
        pass
    for name, value in {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"can't meet: .*1/2 clients joined"), join("cpu", limit=1):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE must be a number, got 'two'"), join("cpu"):
        pass


def _agree(rank: int, size: int, port: int, folder: str) -> None:
    be_rank(rank, size, port)
    with (
        pytest.raises(ValueError, match="device must be auto, cpu or cuda with several processes"),
        join("cuda:0"),
    ):
        pass
    (Path(folder) / f"imported-{rank}").touch()  # what takes seconds is over, for both
    while len(list(Path(folder).iterdir())) < size:
        time.sleep(0.01)
    with join("cpu", limit=5) as world:
        assert (world.rank, world.size, world.main) == (rank, size, rank == 0)
        assert world.gather(rank) == [0, 1]
        assert world.from_main(lambda: {"made by": rank}) == {"made by": 0}
        assert world.share(torch.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]][rank]
        check_same_data("2 samples", world)
        with pytest.raises(
            ValueError, match="must see the same, got 2 samples on rank 0 and 3 samples on rank 1"
        ):
            check_same_data(f"{2 + rank} samples", world)
        # An error of one rank is everybody's, in its words and kind.
        with (
            pytest.raises(FileNotFoundError, match=r"^rank 1: no shard" if rank == 0 else "no shard"),
            world.together(),
        ):
            if rank == 1:
                raise FileNotFoundError("no shard")
        # One of several words, too, and it is nobody's absence whatever it names.
        with (
            pytest.raises(CorruptSample, match=r"igloo\.jpg is corrupt") as caught,
            world.reaching(),
            world.together(),
        ):
            if rank == 1:
                raise CorruptSample("igloo.jpg", "truncated")
        assert str(caught.value).startswith("rank 1: ") == (rank == 0) or rank == 1
        with pytest.raises(KeyError, match="alike"), world.together():
            raise KeyError("alike")
        with pytest.raises(ZeroDivisionError), world.together():
            world.from_main(lambda: 1 / 0)
        # A rank that hangs is named by those that wait.
        world.doing = "step 7"
        named = Path(folder) / "named"
        if rank == 1:
            while not named.exists():
                time.sleep(0.01)
        else:
            with (
                pytest.raises(MissingRankError, match="rank 1 of 2 did not answer at step 7: "),
                world.together(),
            ):
                pass
            named.touch()


def test_ranks_agree(tmp_path: Path) -> None:
    run_ranks(_agree, 2, free_port(), str(tmp_path))


def test_alone_nothing_is_asked() -> None:
    with join("cpu") as world:
        assert isinstance(world, World) and world.main and world.group is None
        assert world.gather(3) == [3] and world.most(4) == 4
