"""COCO style AP against pycocotools itself, and by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cfmvit.data.rle import check_rle
from cfmvit.evaluation import evaluate_results

from .synthetic import box_rle, detections_from, read, write

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@pytest.mark.usefixtures("batches_of_seven")
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_pycocotools(shared_data: Path, iou_type: str) -> None:
    annotations = shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"
    results = detections_from(read(annotations), seed=2, masks=iou_type == "segm")
    ours = evaluate_results(results, annotations, iou_types=(iou_type,))[iou_type]
    evaluator = pycocotools_evaluator(annotations, results, iou_type)
    assert 0.05 < ours["AP"] < 0.9
    for key, value in zip(KEYS, evaluator.stats[:6], strict=True):
        assert ours[key] == pytest.approx(value, abs=1e-12), key
    assert ours["AR@100"] == pytest.approx(evaluator.stats[8], abs=1e-12)


def test_split_equals_pycocotools_on_the_subsets(shared_data: Path) -> None:
    annotations = shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"
    data = read(annotations)
    ids = sorted({annotation["category_id"] for annotation in data["annotations"]})
    base, novel = ids[::2], ids[1::4]
    results = detections_from(data, seed=3)
    ours = evaluate_results(results, annotations, base_ids=base, novel_ids=novel)["bbox"]
    for name, subset in (("AP50", base + novel), ("AP50_base", base), ("AP50_novel", novel)):
        assert ours[name] == pytest.approx(
            pycocotools_evaluator(annotations, results, "bbox", subset).stats[1]
        ), name


@pytest.mark.usefixtures("batches_of_seven")
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_results_of_masks_alone_equal_pycocotools(shared_data: Path, iou_type: str) -> None:
    annotations = shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"
    results = detections_from(read(annotations), seed=4, masks=True)
    for entry in results:
        del entry["bbox"]
    ours = evaluate_results(results, annotations, iou_types=(iou_type,))[iou_type]
    expected = pycocotools_evaluator(annotations, results, iou_type).stats[:6]
    assert [ours[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")] == pytest.approx(expected)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_engines_agree_on_everything(shared_data: Path, iou_type: str) -> None:
    annotations = shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"
    data = read(annotations)
    ids = sorted({annotation["category_id"] for annotation in data["annotations"]})
    results = detections_from(data, seed=6, masks=True)
    options: dict[str, Any] = {
        "iou_types": (iou_type,), "per_category": True, "base_ids": ids[::2], "novel_ids": ids[1::4]
    }  # fmt: skip
    ours, theirs = (
        evaluate_results(results, annotations, engine=engine, **options)
        for engine in ("hotcoco", "pycocotools")
    )
    assert ours.keys() == theirs.keys()
    for name, figures in ours.items():
        assert figures == pytest.approx(theirs[name], abs=1e-9, nan_ok=True), name


def pycocotools_evaluator(
    annotations: Path, results: list[dict[str, Any]], iou_type: str, categories: list[int] | None = None
) -> COCOeval:
    theirs = copy.deepcopy(results)
    if iou_type == "segm":
        for entry in theirs:
            entry.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluator = COCOeval(truth, truth.loadRes(theirs), iou_type)
        evaluator.params.catIds = categories or evaluator.params.catIds
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def two_images(tmp_path: Path, **changes: Any) -> Path:
    """Two cats in image 1, one dog in image 2; ids from 0, as some files have them."""
    size = {"height": 60, "width": 80}
    square = {"area": 400, "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]], "bbox": [10, 10, 20, 20]}
    moved = {"area": 400, "segmentation": [[40, 10, 60, 10, 60, 30, 40, 30]], "bbox": [40, 10, 20, 20]}
    data = {
        "images": [{"id": 1, **size}, {"id": 2, **size}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 6, "name": "owl"}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 3, **square},
            {"id": 1, "image_id": 1, "category_id": 3, **moved},
            {"id": 2, "image_id": 2, "category_id": 5, **square},
        ],
    }
    return write(tmp_path / "coco.json", {**data, **changes})


def detection(image: int, category: int, score: float, box: tuple[float, ...]) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "score": score, "bbox": list(box)}


SQUARE, MOVED = (10, 10, 20, 20), (40, 10, 20, 20)


def test_perfect_is_one(tmp_path: Path) -> None:
    results = [detection(1, 3, 0.9, SQUARE), detection(1, 3, 0.8, MOVED), detection(2, 5, 0.7, SQUARE)]
    for entry in results:
        entry["segmentation"] = box_rle(entry["bbox"], (60, 80))
    metrics = evaluate_results(results, two_images(tmp_path), iou_types=("bbox", "segm"))
    for kind in ("bbox", "segm"):
        assert metrics[kind]["AP"] == metrics[kind]["AP75"] == metrics[kind]["AR@100"] == pytest.approx(1.0)
        assert metrics[kind]["APs"] == pytest.approx(1.0)
        assert math.isnan(metrics[kind]["APl"])


def test_by_hand(tmp_path: Path) -> None:
    # Cats: a hit, a miss, a hit: precision 1 up to recall 1/2 (51 of 101 levels), 2/3 up to recall 1.
    # Dogs: the box is 14 of 20 wide, so its IoU is 0.7: five of ten thresholds (0.5 to 0.7).
    results = [
        detection(1, 3, 0.9, SQUARE),
        detection(1, 3, 0.8, (0, 40, 10, 10)),
        detection(1, 3, 0.7, MOVED),
        detection(2, 5, 0.5, (10, 10, 14, 20)),
    ]
    metrics = evaluate_results(results, two_images(tmp_path), base_ids=[3], novel_ids=[5, 6])["bbox"]
    cats = (51 * 1 + 50 * 2 / 3) / 101
    assert metrics["AP50_base"] == pytest.approx(cats)
    assert metrics["AP_base"] == pytest.approx(cats)
    assert metrics["AP50_novel"] == pytest.approx(1.0)  # owls have no ground truth and no part in the mean
    assert metrics["AP_novel"] == pytest.approx(0.5)
    assert metrics["AP50"] == pytest.approx((cats + 1) / 2)


def test_images_without_detections_count(tmp_path: Path) -> None:
    metrics = evaluate_results(
        [detection(1, 3, 0.9, SQUARE), detection(1, 3, 0.9, MOVED)], two_images(tmp_path)
    )
    assert metrics["bbox"]["AP50"] == pytest.approx(0.5)


def test_masks_are_sized_by_mask_area(tmp_path: Path) -> None:
    # The box claims a large object; its mask is small, as the ground truth's is.
    entry = {**detection(1, 3, 0.9, (0, 0, 79, 59)), "segmentation": box_rle(list(SQUARE), (60, 80))}
    second = {**detection(1, 3, 0.8, SQUARE), "segmentation": box_rle([0, 0, 4, 4], (60, 80))}
    metrics = evaluate_results([entry, second], two_images(tmp_path), iou_types=("segm",))
    assert metrics["segm"]["APs"] == metrics["segm"]["AP"] > 0


def test_boxes_follow_from_masks_where_absent(tmp_path: Path) -> None:
    entry = {"image_id": 2, "category_id": 5, "score": 1, "segmentation": box_rle(list(SQUARE), (60, 80))}
    assert evaluate_results([entry], two_images(tmp_path), base_ids=[5])["bbox"]["AP"] == pytest.approx(1.0)


def test_no_detections_is_zero_and_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = evaluate_results([], two_images(tmp_path))
    assert metrics["bbox"]["AP"] == metrics["bbox"]["AR@100"] == 0.0
    assert capsys.readouterr().out == ""


def test_results_file_and_list_agree_and_the_list_is_untouched(tmp_path: Path) -> None:
    results = [detection(1, 3, 0.9, SQUARE)]
    before = copy.deepcopy(results)
    file = write(tmp_path / "results.json", results)
    np.testing.assert_equal(
        evaluate_results(results, two_images(tmp_path)), evaluate_results(file, two_images(tmp_path))
    )
    assert results == before


BAD_RESULTS = {
    "image": (
        [detection(7, 3, 0.5, SQUARE)],
        r"results\[0\] refers to image_id 7, which .*coco.json does not list",
    ),
    "category": ([detection(1, 4, 0.5, SQUARE)], r"results\[0\] refers to category_id 4"),
    "nan_score": (
        [detection(1, 3, math.nan, SQUARE)],
        r"results\[0\]: score must be a finite number, got nan",
    ),
    "nan_box": (
        [detection(1, 3, 1.0, (0, math.nan, 1, 1))],
        r"results\[0\]: bbox must be \[x, y, width, height\]",
    ),
    "inverted_box": ([detection(1, 3, 1.0, (9, 9, -3, 4))], r"bbox must be .* got \[9, 9, -3, 4\]"),
    "three_numbers": ([detection(1, 3, 1.0, (9, 9, 3))], r"bbox must be"),
    "no_score": ([{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}], r"results\[0\] has no score"),
    "neither_box_nor_mask": (
        [{"image_id": 1, "category_id": 3, "score": 1}],
        r"segmentation must be a compressed RLE",
    ),
    "list_for_an_id": ([{"image_id": [1], "category_id": 3}], r"results\[0\] refers to image_id \[1\]"),
    "truth_for_an_id": (
        [detection(True, 3, 0.5, SQUARE)],
        r"results\[0\] refers to image_id True, which",
    ),
    "beyond_all_floats": ([detection(1, 3, 10**400, SQUARE)], r"results\[0\]: score must be a finite number"),
    "not_a_list": ({"detections": []}, r"results must be a list of detections, got dict"),
    "list_of_lists": ([[1, 2]], r"results\[0\] must be an object, got list"),
}


@pytest.mark.parametrize(("results", "message"), BAD_RESULTS.values(), ids=BAD_RESULTS)
def test_bad_results(tmp_path: Path, results: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_results(results, two_images(tmp_path))


def test_mask_of_another_size(tmp_path: Path) -> None:
    entry = {**detection(1, 3, 0.9, SQUARE), "segmentation": box_rle(list(SQUARE), (80, 60))}
    with pytest.raises(
        ValueError, match=r"RLE's size must be the image's \[height, width\] = \[60, 80\], got \[80, 60\]"
    ):
        evaluate_results([entry], two_images(tmp_path), iou_types=("segm",))


DAMAGED_COUNTS = ["zzz###", "", "1", "PPYo0", None, "é"]


@pytest.mark.parametrize("counts", [*DAMAGED_COUNTS, [5, -1], [4800, 1]])
def test_damaged_masks_end_before_pycocotools_decodes_them(tmp_path: Path, counts: Any) -> None:
    entry = {**detection(1, 3, 0.9, SQUARE), "segmentation": {"size": [60, 80], "counts": counts}}
    with pytest.raises(ValueError, match=r"results\[0\]: (the RLE's|segmentation must be)"):
        evaluate_results([entry], two_images(tmp_path), iou_types=("segm",))


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.asfortranarray(random.random((37, 301)) < random.choice([0.0, 0.001, 0.5, 1.0]), dtype=np.uint8)
    rle = coder.encode(mask)
    check_rle(rle, "here", 37, 301)
    check_rle({**rle, "size": [np.int64(37), np.int32(301)]}, "here", 37, 301)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel("F")]))).tolist()
    check_rle({"size": [37, 301], "counts": np.diff([0, *edges, mask.size]).tolist()}, "here", 37, 301)
    with pytest.raises(ValueError, match="must fill the image's 11100 pixels"):
        check_rle({**rle, "size": [37, 300]}, "here", 37, 300)


OVERFLOWING = [2**60] * 16 + [4800]  # 4800 in 64 bits


@pytest.mark.parametrize(
    "segmentation",
    [
        *({"size": [60, 80], "counts": counts} for counts in [*DAMAGED_COUNTS, [4799.5, 1], OVERFLOWING]),
        {"size": [60.0, 80.0], "counts": [4800]},
        {"counts": [4800]},
        None,
        "junk",
        [],
        [[1, 2]],
        [[1, 1, 6, 1, "a", 6]],
        [[1, 1, 6, 1, 1e9, 6]],
    ],
)
def test_damaged_masks_of_the_ground_truth_are_named(tmp_path: Path, segmentation: Any) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 3, "area": 9, "bbox": [1, 1, 3, 3]}
    truth = two_images(tmp_path, annotations=[{**entry, "segmentation": segmentation}])
    with pytest.raises(ValueError, match=r"coco\.json: annotations\[0\]: (the RLE's|segmentation must be)"):
        evaluate_results([], truth, iou_types=("segm",))
    assert set(evaluate_results([], truth)) == {"bbox"}


@pytest.mark.parametrize("size", [["a", "b"], [[60], [80]], [-60, -80], [60.0, 80.0], [True, 4800], 5])
def test_a_mask_for_a_box_has_a_size(tmp_path: Path, size: Any) -> None:
    truth = two_images(tmp_path, images=[{"id": 1}, {"id": 2}])
    mask = {**box_rle(list(SQUARE), (60, 80)), "size": size}
    entry = {"image_id": 1, "category_id": 3, "score": 1, "segmentation": mask}
    with pytest.raises(ValueError, match=r"results\[0\]: the RLE's size must be \[height, width\]"):
        evaluate_results([entry], truth)


STRAY = {"id": 1, "image_id": 9, "category_id": 3, "area": 1, "bbox": [0, 0, 1, 1]}
BAD_ANNOTATIONS = {
    "no_images": ({"images": None}, {}, "must hold a list named 'images'"),
    "stray_annotation": ({"annotations": [STRAY]}, {}, r"annotations\[0\] refers to image_id 9"),
    "no_area": (
        {"annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}]},
        {},
        "has no area",
    ),
    "no_size": (
        {"images": [{"id": 1}, {"id": 2}]},
        {"iou_types": ["segm"]},
        "image 1 has no height and width",
    ),
    "twice": ({"images": [{"id": 1}, {"id": 1}]}, {}, "images has the id 1 twice"),
    "text_in_a_list_of_ids": (
        {
            "images": [
                {"id": key, "neg_category_ids": ["3"], "not_exhaustive_category_ids": []} for key in (1, 2)
            ]
        },
        {"style": "lvis"},
        r"neg_category_ids of image 1 must be integers, got \['3'\]",
    ),
    "coco_as_lvis": ({}, {"style": "lvis"}, "image 1 has no neg_category_ids, which style 'lvis' needs"),
    "text_for_a_width": (
        {"images": [{"id": 1, "width": "abc"}]},
        {},
        r"images\[0\] must have a positive integer width, got 'abc'",
    ),
    "list_for_an_id": (
        {"annotations": [{**STRAY, "category_id": [3]}]},
        {},
        r"annotations\[0\] refers to image_id 9",
    ),
    "number_for_an_image": ({"images": [5]}, {}, r"images\[0\] has no id"),
    "number_for_a_category": ({"categories": [5]}, {}, r"categories\[0\] has no id"),
    "text_for_an_area": (
        {"annotations": [{**STRAY, "image_id": 1, "area": "abc"}]},
        {},
        r"annotations\[0\]: area must be a finite number and not negative, got 'abc'",
    ),
    "list_for_iscrowd": (
        {"annotations": [{**STRAY, "image_id": 1, "iscrowd": [1]}]},
        {},
        r"annotations\[0\]: iscrowd must be 0 or 1, got \[1\]",
    ),
    "style": ({}, {"style": "voc"}, "style must be auto, lvis or coco, got 'voc'"),
    "iou_types": ({}, {"iou_types": "bbox"}, "iou_types must be a sequence of bbox and segm, got 'bbox'"),
    "unknown_id": ({}, {"base_ids": [3], "novel_ids": [99]}, r"must be ids in .*coco.json, got \[99\]"),
    "overlap": ({}, {"base_ids": [3, 5], "novel_ids": [5]}, r"must not overlap, got \[5\] in both"),
    "fixed": ({}, {"fixed": True}, "fixed must be False with COCO style"),
}


@pytest.mark.parametrize(("changes", "options", "message"), BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_bad_annotations(tmp_path: Path, changes: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_results([], two_images(tmp_path, **changes), **options)


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    entry = {
        "image_id": np.int64(2),
        "category_id": np.int64(5),
        "score": np.float32(0.5),
        "bbox": np.array(SQUARE),
    }
    assert evaluate_results([entry], two_images(tmp_path), novel_ids=[5])["bbox"]["AP"] == pytest.approx(1.0)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json does not exist"):
        evaluate_results([], tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError, match=r"absent\.json does not exist"):
        evaluate_results(tmp_path / "absent.json", two_images(tmp_path))
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"cut\.json is not valid json: Expecting value: line 1"):
        evaluate_results([], tmp_path / "cut.json")
