"""``cfmvit evaluate``: the table, and the open-vocabulary split of COCO."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cfmvit.data import open_detection
from cfmvit.data.splits import COCO_BASE, COCO_NOVEL
from cfmvit.evaluation import evaluate, evaluate_results
from cfmvit.evaluation.detection import evaluate_detections
from cfmvit.evaluation.ground_truth import load_ground_truth

from .synthetic import detections_from, read, write


@pytest.mark.parametrize("entry", [5, None, {"name": "x"}, {"id": [1]}, {"id": [1], "novel": True}])
def test_malformed_categories_are_named(tmp_path: Path, entry: Any) -> None:
    truth = write(tmp_path / "truth.json", {"images": [], "annotations": [], "categories": [entry]})
    with pytest.raises(ValueError, match=r"truth\.json: categories\[0\] (has no|must have an integer) id"):
        evaluate(results=write(tmp_path / "results.json", []), annotations=truth)


def test_photographs(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_detection(f"shards:{shared_data / 'photos-200'}", split="val", base_only=False, image_size=64)
    data.entries = data.entries[::40]
    truth = data.annotations_path
    results = write(tmp_path / "results.json", detections_from(read(truth), seed=4))
    metrics = evaluate(results=results, annotations=truth)["bbox"]
    out = capsys.readouterr().out
    assert "150 base, 50 novel" in out
    assert f"| AP50_novel | {100 * metrics['AP50_novel']:.1f} |" in out
    assert 0 < metrics["AP_novel"] != metrics["AP_base"] > 0


def test_coco(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"
    results = write(tmp_path / "results.json", detections_from(read(annotations), seed=4))
    metrics = evaluate(results=results, annotations=annotations)["bbox"]
    assert metrics == evaluate_results(results, annotations, base_ids=COCO_BASE, novel_ids=COCO_NOVEL)["bbox"]
    assert 0 < metrics["AP50_novel"] != metrics["AP50_base"]
    out = capsys.readouterr().out
    assert "48 base, 17 novel, 15 left out" in out
    assert f"| AP50_novel | {100 * metrics['AP50_novel']:.1f} |" in out


def test_another_data_set_has_no_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box: dict[str, Any] = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    mask = [[1, 1, 6, 1, 6, 6, 1, 6]]
    truth = {
        "images": [{"id": 1, "height": 10, "width": 10}],
        "categories": [{"id": 1, "name": "gizmo"}],
        "annotations": [{**box, "id": 1, "area": 25, "segmentation": mask}],
    }
    annotations = write(tmp_path / "truth.json", truth)
    metrics = evaluate(
        results=write(tmp_path / "results.json", [{**box, "score": 1}]), annotations=annotations
    )
    assert metrics["bbox"]["AP"] == pytest.approx(1.0)
    assert "AP_novel" not in metrics["bbox"]
    assert "base and" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"results.json\[0\]: segmentation must be a compressed RLE"):
        evaluate(results=tmp_path / "results.json", annotations=annotations, masks=True)


def test_all_categories_alike(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"
    results = write(tmp_path / "results.json", detections_from(read(annotations), seed=4))
    metrics = evaluate(results=results, annotations=annotations, vocabulary="all")
    assert metrics == evaluate_results(results, annotations)
    assert "open vocabulary" not in capsys.readouterr().out


def test_report(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"
    results = write(tmp_path / "results.json", detections_from(read(annotations), seed=4))
    metrics = evaluate(results=results, annotations=annotations, folder=tmp_path / "out", per_category=True)
    assert read(tmp_path / "out" / "metrics.json")["bbox"]["AP50_novel"] == metrics["bbox"]["AP50_novel"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"report: {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out
    for shown in (
        "48 base, 17 novel",
        f"{100 * metrics['bbox']['AP50_novel']:.1f}",
        "expected calibration error, novel",
    ):
        assert shown in page, shown
    assert page.count("</circle>") > 20
    assert len(re.findall(r'<tr class="novel"><th scope="row">[a-z ]+</th><td>\d+</td>', page)) == 17


def test_calibration_counts_what_is_right(tmp_path: Path) -> None:
    size = {"height": 60, "width": 80}
    box = {
        "bbox": [10, 10, 20, 20],
        "area": 400,
        "category_id": 1,
        "segmentation": [[10, 10, 30, 10, 30, 30]],
    }
    truth = {
        "images": [{"id": key, **size} for key in range(2500)],  # of several batches
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": key, "image_id": key, **box} for key in range(0, 2500, 2)],
    }
    results = [{"image_id": key, "category_id": 1, "bbox": box["bbox"], "score": 0.75} for key in range(2500)]
    results.append({"image_id": 0, "category_id": 2, "bbox": box["bbox"], "score": 0.05})
    loaded = load_ground_truth(write(tmp_path / "truth.json", truth), "auto", ("bbox",))
    done = evaluate_detections(
        results, loaded, iou_types=("bbox",), base_ids=[1], novel_ids=[2], with_calibration=True
    )
    bins = {name: [b for b in found if b[2]] for name, found in done.calibration.items()}
    assert bins["_base"] == [(pytest.approx(0.75), pytest.approx(0.5), 2500)]
    assert bins["_novel"] == [(pytest.approx(0.05), 0.0, 1)]
    assert [count for _, _, count in bins[""]] == [1, 2500]
    assert (done.boxes, done.detections) == ({1: 1250, 2: 0}, {1: 2500, 2: 1})
