"""The proposal network: losses and selection, by hand-computed cases."""

from __future__ import annotations

import pytest
import torch

from cfmvit.detection import ProposalConfig
from cfmvit.detection.anchors import encode_lrtb, make_anchors
from cfmvit.detection.proposals import Dense, ProposalNetwork

SIZES = torch.tensor([[64, 64]])


def network(**options: object) -> ProposalNetwork:
    torch.manual_seed(0)
    return ProposalNetwork(8, [8.0, 16.0], ProposalConfig(**options))


def perfect(truth: torch.Tensor) -> Dense:
    """Return predictions that put the box of ``truth`` at every place, with saturated zero centerness."""
    anchors = make_anchors([(8, 8), (4, 4)], [8.0, 16.0], 8.0, torch.device("cpu"))
    distances = encode_lrtb(anchors, truth.expand_as(anchors)).unsqueeze(0)
    return Dense(torch.full((1, 80), -30.0), distances, anchors, [64, 16])


def test_a_fresh_network_predicts_its_anchors():
    features = [torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4)]
    dense = network()(features)
    assert dense.logits.shape == (1, 80)
    assert dense.distances.shape == (1, 80, 4)
    torch.testing.assert_close(dense.distances, torch.full((1, 80, 4), 0.5))


def test_box_loss_is_zero_at_the_truth_and_known_beside_it():
    truth = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    dense = perfect(truth)
    net = network(samples=4)
    losses = net.losses(dense, [truth], [torch.Generator().manual_seed(0)])
    assert losses["rpn_box"].item() == pytest.approx(0, abs=1e-6)
    # The anchors that match are the four of side 64 in the middle (IoU above 0.7, the others at most 0.56). A box half
    # as high has IoU 0.5 there; where the centre lies below it, at row 36, the negative distance is cut: rows 0 to 36.
    half = perfect(torch.tensor([[0.0, 0.0, 64.0, 32.0]]))
    losses = net.losses(half, [truth], [torch.Generator().manual_seed(0)])
    assert losses["rpn_box"].item() == pytest.approx(8 * (0.5 + 0.5 + 28 / 64 + 28 / 64) / 4, rel=1e-5)


def test_center_loss_is_the_mean_centerness_when_zero_is_predicted():
    # Three anchors of side 64 in a row, 8 px apart; the object is the middle one. Its neighbours overlap it by
    # 56 / 72 and see its sides at 24 and 40 px.
    anchors = make_anchors([(1, 3)], [8.0], 8.0, torch.device("cpu"))
    dense = Dense(torch.full((1, 3), -30.0), torch.full((1, 3, 4), 0.5), anchors, [3])
    losses = network(samples=4).losses(dense, [anchors[1:2]], [torch.Generator().manual_seed(0)])
    assert losses["rpn_center"].item() == pytest.approx((1 + 2 * (24 / 40) ** 0.5) / 4, rel=1e-5)
    assert losses["rpn_box"].item() == pytest.approx(8 * 2 * (1 - 56 / 72) / 4, rel=1e-5)


def test_an_image_without_objects_teaches_background_only():
    dense = perfect(torch.tensor([[0.0, 0.0, 64.0, 64.0]]))
    losses = network().losses(dense, [torch.zeros(0, 4)], [torch.Generator().manual_seed(0)])
    assert losses["rpn_box"].item() == 0
    assert losses["rpn_center"].item() == pytest.approx(0, abs=1e-6)


def test_select_clips_sorts_and_caps():
    net = network(pre_nms=10, post_nms=7).eval()
    torch.manual_seed(0)
    dense = perfect(torch.tensor([[0.0, 0.0, 64.0, 64.0]]))
    dense.logits.copy_(torch.randn(1, 80))
    dense.distances.uniform_(0.1, 1.0)
    boxes, scores = net.select(dense, torch.tensor([[40, 64]]))
    assert len(boxes[0]) == len(scores[0]) == 7
    assert (boxes[0] >= 0).all()
    assert (boxes[0][:, 2] <= 64).all()
    assert (boxes[0][:, 3] <= 40).all()
    assert (scores[0].diff() <= 0).all()
    assert scores[0][0].item() == pytest.approx(dense.logits.sigmoid().max().item())


def test_nms_in_training_only():
    net = network(pre_nms=80, post_nms=80)
    dense = perfect(torch.tensor([[10.0, 10.0, 50.0, 50.0]]))
    inside = len(net.eval().select(dense, SIZES)[0][0])
    assert inside > 2
    # All places give the same box (cut at centres outside it), so that one a level is left, and the cut ones.
    assert len(net.train().select(dense, SIZES)[0][0]) < inside


def test_boxes_in_the_padding_are_dropped():
    net = network(pre_nms=80, post_nms=80).eval()
    dense = perfect(torch.tensor([[0.0, 0.0, 64.0, 64.0]]))
    dense.distances.fill_(0.05)
    # Boxes reach 3.2 and 6.4 px from their centres at 4, 12, 20, 28 | 36 ... and 8, 24 | 40, 56.
    boxes, _ = net.select(dense, torch.tensor([[30, 30]]))
    assert len(boxes[0]) == 4 * 4 + 2 * 2


def test_images_do_not_suppress_each_other():
    net = network(pre_nms=80, post_nms=80).train()
    dense = perfect(torch.tensor([[10.0, 10.0, 50.0, 50.0]]))
    alone = net.select(dense, SIZES)[0][0]
    double = Dense(dense.logits.repeat(2, 1), dense.distances.repeat(2, 1, 1), dense.anchors, dense.counts)
    for boxes in net.select(double, SIZES.repeat(2, 1))[0]:
        assert torch.equal(boxes, alone)
