"""A folder of pictures: read and written beside the prediction, with the files, the order and the errors of one after another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from cfmvit.detection import Detections, Detector
from cfmvit.detection import folder as module
from cfmvit.detection.folder import Folder, detect_folder

from .small_detector import LABELS, squares_batch

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def detector(make_detector: Callable[..., Detector]) -> Detector:
    return make_detector(base_labels=LABELS[:1])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Nine pictures of different sizes, the fourth and the fifth of them broken and missing."""
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(9)]
    pixels = squares_batch()["images"]
    for number, path in enumerate(paths):
        picture = Image.fromarray(pixels[number % 2].permute(1, 2, 0).numpy())
        picture.resize((96 + 32 * number, 128)).save(path)
    paths[3].write_bytes(b"no picture")
    paths[4].unlink()
    return paths


class InTurn:
    """A pool that does each job when it is given."""

    def __init__(self, threads: int) -> None: ...

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *error: object) -> None: ...

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(job(*arguments))
        return done


def run(detector: Detector, files: list[Path], output: Path, **options: Any) -> Folder:
    return detect_folder(
        detector,
        files,
        detector.vocabulary(LABELS),
        output,
        options.pop("choose", lambda found: found[:5]),
        batch_size=2,
        **options,
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("explain", [False, True])
def test_the_files_are_those_of_one_after_another(
    detector: Detector, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, explain: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "ThreadPoolExecutor", InTurn)
        alone = run(detector, files, tmp_path / "alone", explain=explain)
    drawn, delays = module.overlay, iter([0.2, 0.0] * len(files))

    def late(*arguments: Any) -> Any:
        time.sleep(next(delays))  # the first of each two is the last to be written
        return drawn(*arguments)

    monkeypatch.setattr(module, "overlay", late)
    monkeypatch.setattr(module, "_THREADS", 3)
    beside = run(detector, files, tmp_path / "beside", explain=explain)
    assert beside == alone
    assert [image["file_name"] for image in beside.images] == [str(files[n]) for n in (0, 1, 2, 5, 6, 7, 8)]
    assert [result["image_id"] for result in beside.results] == sorted(5 * list(range(1, 8)))
    assert beside.skipped == 2
    written = content(tmp_path / "alone")
    assert len(written) == 2 + 7 * (1 + explain * len(LABELS))
    assert content(tmp_path / "beside") == written


def test_one_batch_is_read_ahead(
    detector: Detector, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, taken, seen = module.read_image, [], []
    monkeypatch.setattr(module, "read_image", lambda path: (taken.append(path), read(path))[1])

    def choose(found: Detections) -> Detections:
        time.sleep(0.2)
        seen.append(len(taken))
        return found[:1]

    run(detector, files, tmp_path / "out", choose=choose)
    assert seen[0] == 4
    assert taken == files


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_what_ends_the_prediction_ends_all_of_it(
    detector: Detector, files: list[Path], tmp_path: Path, kind: type[BaseException]
) -> None:
    calls: list[int] = []

    def choose(found: Detections) -> Detections:
        calls.append(len(found))
        if len(calls) == 3:
            raise kind("stop")
        return found[:1]

    before = threading.active_count()
    with pytest.raises(kind, match="stop"):
        run(detector, files, tmp_path / "out", choose=choose)
    assert threading.active_count() == before
    assert set(content(tmp_path / "out")) <= {"0.png.detected.png", "1.png.detected.png"}


def test_a_picture_that_cannot_be_written_is_an_error(
    detector: Detector, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = module.overlay

    def full(picture: torch.Tensor, *arguments: Any) -> Any:
        if picture.shape[-1] == 96 + 32:
            raise OSError(28, "No space left on device")
        return drawn(picture, *arguments)

    monkeypatch.setattr(module, "overlay", full)
    with pytest.raises(OSError, match="No space left"):
        run(detector, files, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masks_are_added_to_those_that_are_kept(detector: Detector, precision: Any) -> None:
    images = list(squares_batch()["images"])
    encoded = detector.encode(images, precision=precision)
    whole = detector.predict(encoded, LABELS)
    bare = detector.predict(encoded, LABELS, masks=False)
    assert all(found.masks is None for found in bare)
    kept = [found[rows] for found, rows in zip(bare, (slice(3, 9, 2), slice(0, 0)), strict=True)]
    detector.add_masks(encoded, kept)
    assert kept[0].masks is not None and kept[1].masks is not None and whole[0].masks is not None
    assert len(kept[0].masks) == 3 and len(kept[1].masks) == 0
    expected = whole[0].masks[torch.tensor([3, 5, 7])]
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(kept[0].masks.probabilities, expected.probabilities, atol=tolerance, rtol=0)
    torch.testing.assert_close(kept[0].masks.boxes, expected.boxes)
    foreign = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), [])
    with pytest.raises(ValueError, match="one for each of 2 images, got 1 of it in 2"):
        detector.add_masks(encoded, [kept[0], foreign])
