"""A prediction that is spread over processes is that of one, however it is divided and wherever it was broken off."""

from __future__ import annotations

import io
import itertools
import os
import signal
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from cfmvit.cli import main
from cfmvit.data import open_detection
from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.detection import Detector, predict_dataset
from cfmvit.detection.partial_results import PARTIAL
from cfmvit.training import MissingRankError, join
from tests.processes import be_rank, exit_codes

IMAGES = 7


def _predict(rank: int, size: int, port: int, folder: str, output: str, struck: int | None) -> None:
    """Predict in batches of two; rank 1 is killed when it comes to its batch ``struck``."""
    be_rank(rank, size, port)
    with join("cpu", limit=30) as world:
        data: Any = open_detection(f"lvis:{folder}/scenes", split="val", base_only=False, image_size=96)
        detector: Any = Detector.from_pretrained(f"{folder}/detector")
        find, batches = detector.predict, itertools.count()

        def finding(*arguments: Any, **options: Any) -> Any:
            if rank == 1 and next(batches) == struck:
                os.kill(os.getpid(), signal.SIGKILL)
            return find(*arguments, **options)

        detector.predict = finding
        try:
            predict_dataset(detector, data, Path(output), batch_size=2, world=world)
        except MissingRankError as error:
            Path(f"{output}.error").write_text(str(error))
            os._exit(3)


def _evaluate(rank: int, size: int, port: int, folder: str, output: str) -> None:
    be_rank(rank, size, port)
    with redirect_stdout(io.StringIO()) as printed:
        code = main(
            [
                "evaluate",
                "--checkpoint",
                f"{folder}/detector",
                "--data",
                f"lvis:{folder}/scenes",
                "--device",
                "cpu",
            ]
            + ["--output", output]
        )
    Path(f"{output}-{rank}.out").write_text(printed.getvalue())
    raise SystemExit(code)


def predict(size: int, folder: Path, output: Path, struck: int | None = None) -> list[int | None]:
    return exit_codes(_predict, size, str(folder), str(output), struck)


@pytest.fixture
def folder(tmp_path: Path, make_detector) -> Path:
    nothing, few = SplitConfig(images=0, size=64), SplitConfig(images=IMAGES, size=96, objects=(1, 2))
    make_scenes(tmp_path / "scenes", ScenesConfig(pretrain=nothing, train=nothing, val=few))
    make_detector().save_pretrained(tmp_path / "detector")
    return tmp_path


def test_the_file_is_that_of_one_process(folder: Path) -> None:
    """Batches of 2, 2, 2 and 1 images: of three ranks the last round leaves two without."""
    found = []
    for size in (1, 3):
        assert predict(size, folder, folder / f"{size}") == [0] * size
        assert [path.name for path in (folder / f"{size}").iterdir()] == ["results.json"]
        found.append((folder / f"{size}" / "results.json").read_bytes())
    assert found[0] == found[1]
    # Rank 1 is gone when it comes to the last image; what both found before is kept, and one process goes on.
    assert predict(2, folder, folder / "broken", struck=1) == [3, -signal.SIGKILL]
    assert "rank 1 of 2 did not answer at image 4" in (folder / "broken.error").read_text()
    assert (folder / "broken" / PARTIAL).read_bytes().count(b"\n") == 5
    assert predict(1, folder, folder / "broken") == [0]
    assert (folder / "broken" / "results.json").read_bytes() == found[0]


def test_the_command_has_the_same_figures_and_prints_once(folder: Path) -> None:
    """Rank 1 has no image at all: seven are one batch."""
    for size in (1, 2):
        arguments = (str(folder), str(folder / f"{size}"))
        assert exit_codes(_evaluate, size, *arguments) == [0] * size
    for name in ("results.json", "metrics.json"):
        assert (folder / "1" / name).read_bytes() == (folder / "2" / name).read_bytes()
    one, two = (folder / "1-0.out").read_text(), (folder / "2-0.out").read_text()
    assert two.replace(f"{folder}/2", f"{folder}/1") == one
    assert "| AP50_novel |" in one
    assert (folder / "2-1.out").read_text() == ""
