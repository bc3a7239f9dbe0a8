"""``cfmvit evaluate``: the table, and the open-vocabulary split of COCO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cfmvit.data import open_detection
from cfmvit.data.splits import COCO_BASE, COCO_NOVEL
from cfmvit.evaluation import evaluate, evaluate_results
from cfmvit.evaluation.splits import open_vocabulary_split

from .synthetic import detections_from, read, write


def test_only_cocos_categories_are_split() -> None:
    entries = [{"id": key, "name": name} for key, name in {**COCO_BASE, **COCO_NOVEL}.items()]
    split = open_vocabulary_split(entries)
    assert split is not None
    assert [len(ids) for ids in split] == [48, 17]
    assert not set(split[0]) & set(split[1])
    assert open_vocabulary_split(entries[1:]) is None
    assert open_vocabulary_split([{**entry, "id": entry["id"] + 1} for entry in entries]) is None
    assert open_vocabulary_split([{**entry, "frequency": "f"} for entry in entries]) is None


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
    assert "150 base and 50 novel" in out
    assert f"| AP50_novel | {100 * metrics['AP50_novel']:.1f} |" in out
    assert 0 < metrics["AP_novel"] != metrics["AP_base"] > 0


def test_a_split_has_both_kinds() -> None:
    entries = [{"id": 1, "name": "a", "novel": False}, {"id": 2, "name": "b", "novel": True}]
    assert open_vocabulary_split(entries) == ([1], [2])
    assert open_vocabulary_split(entries[:1]) is open_vocabulary_split(entries[1:]) is None
    assert open_vocabulary_split([]) is None


def test_coco(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"
    results = write(tmp_path / "results.json", detections_from(read(annotations), seed=4))
    metrics = evaluate(results=results, annotations=annotations)["bbox"]
    split = open_vocabulary_split(read(annotations)["categories"])
    assert split is not None
    assert metrics == evaluate_results(results, annotations, base_ids=split[0], novel_ids=split[1])["bbox"]
    assert 0 < metrics["AP50_novel"] != metrics["AP50_base"]
    out = capsys.readouterr().out
    assert "48 base and 17 novel" in out
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
