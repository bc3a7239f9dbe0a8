"""A prediction that is broken off loses no image, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cfmvit.data import open_detection
from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.detection import Detector, predict_dataset
from cfmvit.detection.partial_results import PARTIAL, PartialResults
from cfmvit.training.precision import choose_precision

from ..processes import ROOT

SETTINGS = {"detector": "a", "data": "b"}
FIRST, SECOND = (
    [{"image_id": 1, "score": 0.5}, {"image_id": 1, "score": 0.25}],
    [{"image_id": 3, "score": 1.0}],
)


def done(folder: Path, settings: dict[str, str] = SETTINGS, **options: bool) -> int:
    found = PartialResults(folder, settings, **options)
    found.close()
    return found.done


def test_it_goes_on_and_ends_in_one_list(tmp_path: Path) -> None:
    begun = PartialResults(tmp_path, SETTINGS)
    begun.add(FIRST)
    begun.add([])
    begun.close()
    assert not (tmp_path / "results.json").exists()
    again = PartialResults(tmp_path, SETTINGS)
    assert again.done == 2
    again.add(SECOND)
    path = again.finish()
    assert json.loads(path.read_text()) == FIRST + SECOND
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert done(tmp_path) == 0


def test_no_image_is_an_empty_list(tmp_path: Path) -> None:
    assert json.loads(PartialResults(tmp_path, SETTINGS).finish().read_text()) == []


@pytest.mark.parametrize(
    "tail", [b'[{"image_id": 3, "sc', b"[{}]", b"\0" * 40, b"[\0\0]\n[]\n", b"what\n[]\n"]
)
def test_a_damaged_end_is_done_again(tmp_path: Path, tail: bytes) -> None:
    begun = PartialResults(tmp_path, SETTINGS)
    begun.add(FIRST)
    begun.close()
    with (tmp_path / PARTIAL).open("ab") as file:
        file.write(tail)
    again = PartialResults(tmp_path, SETTINGS)
    assert again.done == 1
    again.add(SECOND)
    assert json.loads(again.finish().read_text()) == FIRST + SECOND


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    begun = PartialResults(tmp_path, SETTINGS)
    begun.add(FIRST)
    with pytest.raises(
        RuntimeError, match=rf"predict: process {os.getpid()} on .* is predicting into {tmp_path}"
    ):
        PartialResults(tmp_path, SETTINGS)
    begun.close()
    before = (tmp_path / PARTIAL).read_bytes()
    with pytest.raises(ValueError, match=r"of another run, of which data differs; --overwrite begins anew"):
        PartialResults(tmp_path, {**SETTINGS, "data": "c"})
    assert (tmp_path / PARTIAL).read_bytes() == before
    assert done(tmp_path, {**SETTINGS, "data": "c"}, overwrite=True) == 0


def test_a_first_line_that_was_never_whole_is_no_run(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_text('{"settings": {"dete')
    assert done(tmp_path) == 0


PREDICT = """
import signal, sys, time
from pathlib import Path
from cfmvit.data import open_detection
from cfmvit.detection import Detector, predict_dataset

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored
data = open_detection(f"lvis:{sys.argv[1]}", split="val", base_only=False, image_size=96)
load, data.load_image = data.load_image, lambda index: load(index) if index < 4 else time.sleep(20)
predict_dataset(Detector.from_pretrained(sys.argv[2]), data, Path(sys.argv[3]), batch_size=2, precision="fp32")
"""


def dataset(scenes: Path) -> Any:
    return open_detection(f"lvis:{scenes}", split="val", base_only=False, image_size=96)


def test_the_next_images_are_read_beside_the_prediction(
    tmp_path: Path, make_detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing, few = SplitConfig(images=0, size=64), SplitConfig(images=5, size=96, objects=(1, 2))
    make_scenes(tmp_path / "scenes", ScenesConfig(pretrain=nothing, train=nothing, val=few))
    detector, data = make_detector(), dataset(tmp_path / "scenes")
    read: list[int] = []
    seen: list[int] = []
    load, predict = data.load_image, detector.predict

    def look(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        seen.append(len(read))
        return predict(*arguments, **options)

    monkeypatch.setattr(data, "load_image", lambda index: read.append(index) or load(index))
    monkeypatch.setattr(detector, "predict", look)
    predict_dataset(detector, data, tmp_path / "out", batch_size=2)
    assert seen == [4, 5, 5]
    assert read == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("ending", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_killed_prediction_goes_on_where_it_was(
    tmp_path: Path, make_detector, ending: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing, few = SplitConfig(images=0, size=64), SplitConfig(images=6, size=96, objects=(1, 2))
    make_scenes(tmp_path / "scenes", ScenesConfig(pretrain=nothing, train=nothing, val=few))
    make_detector().save_pretrained(tmp_path / "detector")
    output = tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, "-c", PREDICT, tmp_path / "scenes", tmp_path / "detector", output],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 300
        while not (output / PARTIAL).exists() or (output / PARTIAL).read_bytes().count(b"\n") < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(ending)
        try:
            process.wait(300)
        finally:
            process.kill()
    assert not (output / "results.json").exists()
    detector = Detector.from_pretrained(tmp_path / "detector")
    seen: list[int] = []
    rest = dataset(tmp_path / "scenes")
    load = rest.load_image
    monkeypatch.setattr(rest, "load_image", lambda index: seen.append(index) or load(index))
    found = json.loads(predict_dataset(detector, rest, output, batch_size=2, precision="fp32").read_text())
    assert seen == [4, 5]
    whole = predict_dataset(
        detector, dataset(tmp_path / "scenes"), tmp_path / "whole", batch_size=2, precision="fp32"
    )
    expected = json.loads(whole.read_text())
    keys = ("image_id", "category_id")
    assert [[item[key] for key in keys] for item in found] == [
        [item[key] for key in keys] for item in expected
    ]
    # The other process had one thread.
    assert [item["score"] for item in found] == pytest.approx([item["score"] for item in expected], abs=1e-5)
    assert not (output / PARTIAL).exists()


def test_settings_tell_detectors_data_and_options_apart(tmp_path: Path, make_detector) -> None:
    nothing, few = SplitConfig(images=0, size=64), SplitConfig(images=2, size=96, objects=(1, 2))
    make_scenes(tmp_path / "scenes", ScenesConfig(pretrain=nothing, train=nothing, val=few))
    data = dataset(tmp_path / "scenes")

    def broken_off(detector: Detector, **options: Any) -> None:
        class Stop(Exception):
            pass

        def stop(*_: Any, **__: Any) -> None:
            raise Stop

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            patch.setattr(Detector, "predict", stop)
            predict_dataset(detector, data, tmp_path / "run", **options)

    detector = make_detector()
    broken_off(detector)
    broken_off(detector, batch_size=1)
    other = "fp32" if choose_precision("auto", torch.device("cpu")) == "bf16" else "bf16"
    for differs, options in (
        ("threshold", {"threshold": 0.5}), ("masks", {"masks": False}), ("precision", {"precision": other})
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"of which {differs} differs"):
            predict_dataset(detector, data, tmp_path / "run", **options)
    with pytest.raises(ValueError, match="of which configuration differs"):
        predict_dataset(make_detector(templates=("{}",)), data, tmp_path / "run")
    detector.temperature.data += 1
    with pytest.raises(ValueError, match="of which detector differs"):
        predict_dataset(detector, data, tmp_path / "run")
