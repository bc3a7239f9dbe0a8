"""LVIS style AP against the lvis package itself, and the ways in which it must be better behaved."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfmvit.evaluation import evaluate_results
from cfmvit.evaluation.results import highest

from .synthetic import detections_from, read, write

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300")


class _OldNumpy(ModuleType):
    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@pytest.fixture
def lvis(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package, patched for numpy 2 independently of the code under test."""
    package = pytest.importorskip("lvis")
    monkeypatch.setattr(package.eval, "np", _OldNumpy("numpy"))
    monkeypatch.setattr(package.results.LVISResults, "__init__", _quiet(package.results.LVISResults.__init__))
    return package


def empty_mask(height: int, width: int) -> dict[str, Any]:
    code = pytest.importorskip("pycocotools.mask").encode(np.zeros((height, width), np.uint8, order="F"))
    return {"size": [height, width], "counts": code["counts"].decode()}


def _quiet(init: Any) -> Any:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        with pytest.warns(DeprecationWarning, match="'warn' method is deprecated"):
            init(self, *args, **kwargs)

    return wrapped


@pytest.mark.usefixtures("batches_of_seven")
@pytest.mark.parametrize(
    ("iou_type", "images", "extra"), [("bbox", 30, 320), ("segm", 50, 10)], ids=["bbox", "segm"]
)
def test_equals_the_lvis_package(
    shared_data: Path, tmp_path: Path, lvis: ModuleType, iou_type: str, images: int, extra: int
) -> None:
    data = read(shared_data / "lvis_val_100.json")
    kept = {image["id"] for image in data["images"][:images]}
    data["images"] = data["images"][:images]
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] in kept]
    annotations = write(tmp_path / "lvis.json", data)
    # 320 a picture is over the cap of 300.
    results = detections_from(data, seed=1, masks=iou_type == "segm", extra=extra)
    # Nothing without an area counts, be it found or not.
    for entry in results[::5]:
        entry["bbox"][2] = 0
        if iou_type == "segm":
            height, width = entry["segmentation"]["size"]
            entry["segmentation"] = empty_mask(height, width)
    for entry in data["annotations"][::7]:
        entry["area"] = 0
    write(annotations, data)
    ours = evaluate_results(results, annotations, iou_types=(iou_type,))[iou_type]

    theirs = copy.deepcopy(results)
    if iou_type == "segm":
        for entry in theirs:
            del entry["bbox"]
    truth = lvis.LVIS(str(annotations))
    evaluator = lvis.LVISEval(truth, lvis.LVISResults(truth, theirs), iou_type)
    evaluator.run()
    assert 0.05 < ours["AP"] < 0.9
    for key in KEYS:
        assert ours[key] == pytest.approx(evaluator.results[key], abs=1e-12), key
    for group, letter in enumerate("rcf"):
        expected = evaluator._summarize("ap", iou_thr=0.5, freq_group_idx=group)
        assert ours[f"AP50{letter}"] == pytest.approx(expected, abs=1e-12)


def federated(tmp_path: Path) -> Path:
    """Two images; "cup" is frequent, "dodo" rare. Image 2 has a verified absence of dodos, and cups not all boxed."""
    image = {"height": 100, "width": 100}
    box = {"bbox": [10, 10, 20, 20], "area": 400, "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}
    return write(
        tmp_path / "lvis.json",
        {
            "images": [
                {**image, "id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": []},
                {**image, "id": 2, "neg_category_ids": [8], "not_exhaustive_category_ids": [7]},
                {**image, "id": 3, "neg_category_ids": [], "not_exhaustive_category_ids": []},
            ],
            "categories": [
                {"id": 7, "name": "cup", "frequency": "f"},
                {"id": 8, "name": "dodo", "frequency": "r"},
                {"id": 9, "name": "unseen", "frequency": "c"},
            ],
            "annotations": [
                {"id": 0, "image_id": 1, "category_id": 7, **box},
                {"id": 1, "image_id": 2, "category_id": 7, **box},
                {"id": 2, "image_id": 1, "category_id": 8, **box},
            ],
        },
    )


def detection(
    image: int, category: int, score: float, box: tuple[float, ...] = (10, 10, 20, 20)
) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "score": score, "bbox": list(box)}


def test_federated_rules_by_hand(tmp_path: Path) -> None:
    elsewhere = (60, 60, 20, 20)
    results = [
        detection(1, 7, 0.9),
        detection(2, 7, 0.8),
        detection(2, 7, 0.95, elsewhere),  # cups of image 2 are not all boxed: ignored
        detection(3, 7, 0.99),  # nothing is known about cups in image 3: ignored
        detection(2, 8, 0.9),  # a verified absence: a false positive above the true one
        detection(1, 8, 0.5),
        detection(1, 9, 0.5),  # a category without ground truth: no figure
    ]
    metrics = evaluate_results(results, federated(tmp_path), per_category=True)
    box = metrics["bbox"]
    assert box["APf"] == pytest.approx(1.0)
    assert box["AP50r"] == box["AP50_novel"] == pytest.approx(0.5)
    assert box["AP"] == pytest.approx(0.75)
    assert math.isnan(box["APc"])
    assert box["AP50_base"] == pytest.approx(1.0)
    assert metrics["bbox AP50 by category"] == pytest.approx({"cup": 1.0, "dodo": 0.5})


def test_no_detections_is_zero(tmp_path: Path) -> None:
    box = evaluate_results([], federated(tmp_path), iou_types=("bbox", "segm"))["segm"]
    assert box["AP"] == box["APr"] == box["AR@300"] == 0.0


def test_fixed_ap_has_no_cap_per_image(tmp_path: Path) -> None:
    wrong = [detection(1, 7, 0.9, (50 + 0.1 * index, 60, 20, 20)) for index in range(300)]
    metrics = evaluate_results([*wrong, detection(1, 8, 0.1)], federated(tmp_path), fixed=True)["bbox"]
    assert metrics["APr"] == 0.0
    assert metrics["APFixedr"] == pytest.approx(1.0)
    assert metrics["APFixed50_novel"] == pytest.approx(1.0)


def test_highest_keeps_the_first_of_equal_scores() -> None:
    scores = [0.5, 0.1, 0.5, 0.5, 0.9, 0.5]
    rows = np.array(
        [[image, 0, 0, 1, 1, score, 0] for image, score in zip([4, 2, 4, 4, 4, 4], scores)], float
    )
    assert highest(rows, 0, 3).tolist() == [0, 1, 2, 4]
    assert highest(rows, 0, 5) is None
    assert highest(rows, 6, 1).tolist() == [4]
    assert highest(rows[:0], 0, 3) is None


def test_results_of_the_caller_are_untouched_and_logging_too(tmp_path: Path) -> None:
    results = [detection(1, 7, 0.9)]
    handlers = logging.getLogger().handlers[:]
    evaluate_results(results, federated(tmp_path))
    assert results == [detection(1, 7, 0.9)]
    assert logging.getLogger().handlers == handlers


def test_given_ids_restrict_the_evaluation(tmp_path: Path) -> None:
    box = evaluate_results([detection(1, 7, 0.9)], federated(tmp_path), base_ids=[8])["bbox"]
    assert box["AP"] == box["AP_base"] == 0.0
    assert "AP_novel" not in box


@pytest.mark.usefixtures("batches_of_seven")
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("masks_alone", [False, True])
def test_engines_agree_on_everything(
    shared_data: Path, tmp_path: Path, lvis: ModuleType, iou_type: str, masks_alone: bool
) -> None:
    data = read(shared_data / "lvis_val_100.json")
    kept = [image["id"] for image in data["images"][:12]]
    data["images"] = data["images"][:12]
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] in kept]
    # Ids beyond what a float holds, and below zero.
    names = {key: (-1) ** number * (2**53 + 2 * number + 1) for number, key in enumerate(kept)}
    for image in data["images"]:
        image["id"] = names[image["id"]]
    for entry in data["annotations"]:
        entry["image_id"] = names[entry["image_id"]]
    annotations = write(tmp_path / "lvis.json", data)
    # More than 300 in an image; those of one image do not lie together.
    results = detections_from(data, seed=5, masks=True, extra=310 if iou_type == "bbox" else 20)
    np.random.default_rng(0).shuffle(results)
    if masks_alone:
        for entry in results:
            del entry["bbox"]
    options: dict[str, Any] = {"iou_types": (iou_type,), "fixed": True, "per_category": True}
    ours, theirs = (
        evaluate_results(results, annotations, engine=engine, **options) for engine in ("hotcoco", "lvis")
    )
    assert ours.keys() == theirs.keys()
    for name, figures in ours.items():
        assert figures == pytest.approx(theirs[name], abs=1e-9, nan_ok=True), name


def test_an_engine_has_its_style(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine must be hotcoco or lvis with LVIS style, got 'pycocotools'"):
        evaluate_results([], federated(tmp_path), engine="pycocotools")
    with pytest.raises(ValueError, match="engine must be one of hotcoco, pycocotools, lvis, got 'fast'"):
        evaluate_results([], federated(tmp_path), engine="fast")


@pytest.mark.parametrize("value", [1, True, 0.5, "1"])
def test_what_is_marked_ignore_is_refused(tmp_path: Path, value: Any) -> None:
    """The lvis package counts it neither as found nor as missed; in COCO style pycocotools takes no notice of it."""
    path = federated(tmp_path)
    data = read(path)
    for number, entry in enumerate(data["annotations"]):
        entry["ignore"] = value if number == 1 else 0
    write(path, data)
    with pytest.raises(ValueError, match=r"annotations\[1\]: ignore must be 0 in LVIS style, got"):
        evaluate_results([detection(1, 7, 0.9)], path)
    data["annotations"][1]["ignore"] = 0
    evaluate_results([detection(1, 7, 0.9)], write(path, data))
