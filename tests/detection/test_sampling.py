"""Matching and sampling, by hand-computed cases."""

from __future__ import annotations

import pytest
import torch

from cfmvit.detection import HeadConfig
from cfmvit.detection.sampling import check_truth, choose, match, sample_regions

TRUTH = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_match_thresholds():
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],  # IoU 1 with the first
            [20.0, 20.0, 30.0, 25.0],  # 0.5 with the second
            [0.0, 0.0, 10.0, 4.0],  # 0.4: between
            [0.0, 0.0, 10.0, 2.0],  # 0.2: below
            [50.0, 50.0, 60.0, 60.0],
        ]
    )
    assert match(TRUTH, boxes, 0.5, 0.3).tolist() == [0, 1, -2, -1, -1]


def test_forced_match_gives_each_target_its_best_box():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 2.0], [0.0, 0.0, 10.0, 1.0], [20.0, 20.0, 30.0, 29.0]])
    assert match(TRUTH, boxes, 0.7, 0.3).tolist() == [-1, -1, 1]
    assert match(TRUTH, boxes, 0.7, 0.3, force=True).tolist() == [0, -1, 1]


def test_match_without_targets_is_background():
    assert match(torch.zeros(0, 4), TRUTH, 0.5, 0.5).tolist() == [-1, -1]


def test_choose_caps_the_foreground_and_fills_with_negatives():
    matches = torch.tensor([0] * 20 + [-2] * 20 + [-1] * 20)
    positive, negative = choose(matches, 16, 0.25, generator())
    assert len(positive) == 4
    assert (positive < 20).all()
    assert len(set(positive.tolist())) == 4
    assert len(negative) == 12
    assert (negative >= 40).all()
    assert len(set(negative.tolist())) == 12


def test_choose_is_a_function_of_the_generator():
    matches = torch.tensor([0] * 50 + [-1] * 50)
    draws = [torch.cat(choose(matches, 16, 0.5, generator(seed))).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_sampled_regions_hold_the_ground_truth_and_its_rows():
    proposals = [
        torch.tensor([[0.0, 0.0, 10.0, 6.0], [40.0, 40.0, 50.0, 50.0]]),
        torch.tensor([[1.0, 1.0, 5.0, 5.0]]),
    ]
    labels = [torch.tensor([4, 7]), torch.zeros(0, dtype=torch.int64)]
    config = HeadConfig(samples=100, foreground=0.25)
    regions = sample_regions(
        proposals, [TRUTH, torch.zeros(0, 4)], labels, config, [generator(), generator()]
    )
    assert [len(boxes) for boxes in regions.boxes] == [4, 1]
    # Foreground first: the two objects themselves and the proposal of IoU 0.6; then the far one.
    assert regions.labels.tolist() == [5, 8, 5, 0, 0]
    assert regions.targets[:3].tolist() == [TRUTH[0].tolist(), TRUTH[1].tolist(), TRUTH[0].tolist()]
    every, none = torch.ones(2, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)
    chosen = regions.foreground(2, [every, none])
    assert [len(boxes) for boxes in chosen.boxes] == [2, 0]
    assert chosen.index[0].tolist() == [0, 1]
    masked = regions.foreground(9, [torch.tensor([True, False]), none])
    assert masked.index[0].tolist() == [0, 0], "an object without a mask teaches the mask head nothing"


@pytest.mark.parametrize(
    "box",
    [
        [5.0, 5.0, 5.0, 9.0],
        [9.0, 5.0, 5.0, 9.0],
        [0.0, 0.0, float("nan"), 9.0],
        [0.0, 0.0, float("inf"), 9.0],
    ],
)
def test_bad_boxes_are_named(box):
    with pytest.raises(ValueError, match=r"boxes must be finite with x1 < x2 and y1 < y2, got .* in photo 7"):
        check_truth([torch.tensor([box])], [torch.tensor([0])], 3, ["photo 7"])


def test_a_novel_or_unknown_label_is_refused():
    for label in (-1, 3):
        with pytest.raises(ValueError, match=r"labels must be one a box .* in image 0"):
            check_truth([TRUTH[:1]], [torch.tensor([label])], 3, None)
