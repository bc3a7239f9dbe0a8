"""Anchors, the left-right-top-bottom code and centerness, by hand-computed cases."""

from __future__ import annotations

import math

import pytest
import torch

from cfmvit.detection.anchors import centerness, decode_lrtb, encode_lrtb, lrtb_iou, make_anchors


def test_anchors_are_centred_on_places_level_after_level():
    anchors = make_anchors([(1, 2), (1, 1)], [4.0, 8.0], 8.0, torch.device("cpu"))
    assert anchors.tolist() == [
        [2 - 16, 2 - 16, 2 + 16, 2 + 16],
        [6 - 16, 2 - 16, 6 + 16, 2 + 16],
        [4 - 32, 4 - 32, 4 + 32, 4 + 32],
    ]


def test_lrtb_code_is_in_anchor_sides():
    anchor = torch.tensor([0.0, 0.0, 20.0, 20.0])
    box = torch.tensor([5.0, 8.0, 25.0, 14.0])
    assert encode_lrtb(anchor, box).tolist() == pytest.approx([0.25, 0.75, 0.1, 0.2])


def test_lrtb_round_trip():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + 1 + torch.rand(50, 2, generator=generator) * 80], dim=1)
    anchors = make_anchors([(5, 10)], [8.0], 8.0, torch.device("cpu"))
    torch.testing.assert_close(decode_lrtb(anchors, encode_lrtb(anchors, boxes)), boxes)


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.0),
        ([1.0, 3.0, 2.0, 2.0], math.sqrt(1 / 3)),
        ([1.0, 4.0, 1.0, 4.0], 0.25),
        ([-0.1, 1.0, 1.0, 1.0], 0.0),
        ([-0.1, 1.0, -0.1, 1.0], 0.0),
        ([0.0, 1.0, 1.0, 1.0], 0.0),
    ],
)
def test_centerness(distances, expected):
    assert centerness(torch.tensor(distances)).item() == pytest.approx(expected)


def test_lrtb_iou_equals_box_iou():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 30, 4, generator=generator) + 0.01
    anchors = torch.tensor([0.0, 0.0, 10.0, 10.0]).expand(30, 4)
    from torchvision.ops import box_iou

    expected = box_iou(decode_lrtb(anchors, first), decode_lrtb(anchors, second)).diagonal()
    torch.testing.assert_close(lrtb_iou(first, second), expected)
