"""Pyramid, heads, masks and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvit.demo.presets import PRESETS
from cfmvit.detection import HeadConfig, PyramidConfig, ScoreConfig
from cfmvit.detection.backbone import finetuned_attention, frozen_attention
from cfmvit.detection.box_masks import BoxMasks
from cfmvit.detection.ensemble import frozen_embeddings, region_scores, scored_by
from cfmvit.detection.image_input import Prepared
from cfmvit.detection.postprocess import pick, to_original
from cfmvit.detection.pyramid import SimplePyramid
from cfmvit.detection.region_heads import (
    BOX_WEIGHTS,
    Aligner,
    BoxHead,
    MaskHead,
    box_loss,
    decode_boxes,
    mask_loss,
)
from cfmvit.detection.sampling import Regions


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (4, (0, 1, 2, 3)), (2, (0, 1)), (1, (0,))],
)
def test_global_blocks_are_spread_evenly(depth, expected):
    assert finetuned_attention(depth, 16, None).global_blocks == expected
    assert frozen_attention(depth, 16).global_blocks == (depth - 1,)


def test_a_global_block_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"global_blocks must lie in 0..11, got \[12\]"):
        finetuned_attention(12, 16, (3, 12))


def test_pyramid_shapes_and_strides():
    pyramid = SimplePyramid(32, 16, PyramidConfig(channels=24))
    maps = pyramid(torch.randn(2, 6 * 5, 32), (6, 5))
    assert pyramid.strides == [4, 8, 16, 32]
    assert [tuple(level.shape) for level in maps] == [
        (2, 24, 24, 20),
        (2, 24, 12, 10),
        (2, 24, 6, 5),
        (2, 24, 3, 3),
    ]


def test_pyramid_levels_can_be_chosen():
    pyramid = SimplePyramid(32, 8, PyramidConfig(levels=(3, 4), channels=8))
    assert pyramid.strides == [4, 8]
    assert [tuple(m.shape[2:]) for m in pyramid(torch.randn(1, 16, 32), (4, 4))] == [(8, 8), (4, 4)]


@pytest.mark.parametrize("levels", [(), (3, 2), (1, 2), (3, 3), (3, 5)])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match=r"pyramid.levels must be consecutive"):
        PyramidConfig(levels=levels)


def test_aligner_takes_the_level_that_fits():
    # Each level holds its own number; a box of 112 px belongs to stride 8, of 56 px to stride 4.
    maps = [torch.full((1, 1, 512 // stride, 512 // stride), float(stride)) for stride in (2, 4, 8, 16)]
    sides = (20.0, 56.0, 112.0, 300.0)
    boxes = torch.tensor([[100.0, 100.0, 100.0 + side, 100.0 + side] for side in sides])
    crops = Aligner((2.0, 4.0, 8.0, 16.0), 2)(maps, [boxes], 7)
    assert crops.shape == (4, 1, 7, 7)
    assert crops.amax((1, 2, 3)).tolist() == crops.amin((1, 2, 3)).tolist() == [2.0, 4.0, 8.0, 16.0]


def test_box_head_embeds_into_the_joint_space_with_scale_20():
    head = BoxHead(8, 48, HeadConfig(convs=2, channels=16, fc=32))
    embeds, deltas = head(torch.randn(5, 8, 7, 7))
    assert embeds.shape == (5, 48)
    assert deltas.shape == (5, 4)
    assert head.embed.bias is None
    weight = torch.nn.functional.normalize(head.embed.weight, dim=-1)
    row = torch.nn.functional.normalize(torch.randn(32), dim=0)
    torch.testing.assert_close(head.embed(3 * row), 20 * weight @ row)


def test_deltas_round_trip():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(20, 4, generator=generator) * 50
    boxes[:, 2:] += boxes[:, :2] + 5
    targets = boxes + torch.randn(20, 4, generator=generator)
    targets[:, 2:] = torch.maximum(targets[:, 2:], targets[:, :2] + 2)
    regions = Regions(
        [boxes], torch.ones(20, dtype=torch.int64), targets, [torch.zeros(20, dtype=torch.int64)]
    )
    wx, wy, ww, wh = BOX_WEIGHTS
    size, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = ((targets[:, 2:] + targets[:, :2]) - (boxes[:, 2:] + boxes[:, :2])) / 2 / size
    deltas = torch.cat(
        [shift * torch.tensor([wx, wy]), (wanted / size).log() * torch.tensor([ww, wh])], dim=1
    )
    torch.testing.assert_close(decode_boxes(deltas, boxes), targets, rtol=1e-4, atol=1e-4)
    assert box_loss(deltas, regions).item() == pytest.approx(0, abs=1e-6)
    # Huber: 0.5 d^2 below 1, d - 0.5 above.
    assert box_loss(deltas + torch.tensor([0.5, 0.0, 0.0, 3.0]), regions).item() == pytest.approx(
        len(deltas) * (0.125 + 2.5), rel=1e-4
    )


def test_background_has_no_box_loss():
    regions = Regions(
        [torch.rand(3, 4)], torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4), [torch.full((3,), -1)]
    )
    assert box_loss(torch.randn(3, 4), regions).item() == 0


def test_mask_head_doubles_the_resolution():
    assert MaskHead(8, HeadConfig(mask_convs=1, mask_channels=8))(torch.randn(3, 8, 14, 14)).shape == (
        3,
        28,
        28,
    )


def test_mask_loss_crops_the_object_of_each_region():
    masks = torch.zeros(2, 40, 40, dtype=torch.uint8)
    masks[0, :, :20] = 1
    masks[1, :20] = 1
    boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0], [10.0, 10.0, 30.0, 30.0]])
    left = torch.full((4, 4), -20.0)
    left[:, :2] = 20.0
    logits = torch.stack([left.T, left])
    assert mask_loss(logits, [boxes], [torch.tensor([1, 0])], [masks]).item() == pytest.approx(0, abs=1e-6)
    assert mask_loss(logits, [boxes], [torch.tensor([0, 1])], [masks]).item() == pytest.approx(
        logits.numel() * 10, rel=1e-4
    )


def test_mask_loss_of_no_region_is_zero_and_differentiable():
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    loss = mask_loss(logits, [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 9, 9)])
    loss.backward()
    assert loss.item() == 0


def test_pasted_masks_lie_in_their_boxes():
    probabilities = torch.zeros(2, 28, 28)
    probabilities[0] = 1
    probabilities[1, :, :14] = 1
    boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0], [60.0, 10.0, 80.0, 50.0]])
    pasted = BoxMasks(probabilities, boxes, (60, 100)).dense()
    assert pasted.shape == (2, 60, 100)
    assert pasted.dtype == torch.bool
    rows, columns = pasted[0].any(1).nonzero()[:, 0], pasted[0].any(0).nonzero()[:, 0]
    for found, expected in zip((rows[0], rows[-1], columns[0], columns[-1]), (20, 40, 10, 50)):
        assert abs(int(found) - expected) <= 1
    assert pasted[1].sum().item() == pytest.approx(10 * 40, rel=0.15)
    assert not pasted[1, :, 72:].any()


def test_masks_are_those_of_torchvision():
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    random = torch.Generator().manual_seed(0)
    probabilities = torch.rand(40, 14, 14, generator=random)
    corners = torch.rand(40, 2, generator=random) * torch.tensor([100.0, 60.0])
    boxes = torch.cat([corners, corners + torch.rand(40, 2, generator=random) * 70 + 0.1], dim=1)
    boxes[:, 0::2].clamp_(max=100)
    boxes[:, 1::2].clamp_(max=60)
    masks = BoxMasks(probabilities, boxes, (60, 100))
    expected = paste_masks_in_image(probabilities[:, None], boxes, (60, 100))[:, 0] > 0.5
    assert torch.equal(masks.dense(), expected)
    assert all(torch.equal(masks[row], expected[row]) for row in range(len(masks)))
    assert torch.equal(masks[-1], expected[-1])
    assert torch.equal(masks[torch.tensor([3, 5])].dense(), expected[[3, 5]])
    assert np.array_equal(np.asarray(masks), expected.numpy())
    with pytest.raises(IndexError):
        masks[40]


def test_pick_suppresses_within_a_class_only():
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [50.0, 50.0, 60.0, 60.0], [5.0, 5.0, 5.0, 5.0]]
    )
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.2, 0.0], [1.0, 1.0]])
    picked = pick(boxes, scores, ScoreConfig(), 0.0, 10)
    assert picked.scores.tolist() == pytest.approx([0.9, 0.3, 0.2])
    assert picked.label_ids.tolist() == [0, 1, 0]
    assert len(pick(boxes, scores, ScoreConfig(), 0.25, 10).scores) == 2
    assert len(pick(boxes, scores, ScoreConfig(), 0.0, 1).scores) == 1
    assert len(pick(boxes[:0], scores[:0], ScoreConfig(), 0.0, 10).scores) == 0


def test_boxes_return_to_original_pixels():
    picked = pick(torch.tensor([[8.0, 4.0, 64.0, 32.0]]), torch.tensor([[0.5]]), ScoreConfig(), 0.0, 10)
    image = Prepared(torch.zeros(3, 64, 64, dtype=torch.uint8), (100, 200), (32, 64))
    found = to_original(picked, ("cat",), image)
    torch.testing.assert_close(found.boxes, torch.tensor([[25.0, 12.5, 200.0, 100.0]]))
    assert found.labels == ["cat"]


def ensemble(config: ScoreConfig, base: bool, frozen: bool = True) -> tuple[float, float, list[float]]:
    """Score one region; return p and z of the label and the scores."""
    text = torch.eye(3)
    embed, vlm = torch.tensor([[0.1, 0.12, 0.09]]), torch.tensor([[0.1, 0.11, 0.115]])
    scores = region_scores(
        embed,
        text,
        torch.tensor(2.0),
        torch.tensor([0.5]),
        torch.tensor([base, False]),
        vlm if frozen else None,
        config,
    )
    p = (embed / embed.norm() / 0.02).softmax(-1)[0]
    z = (vlm / vlm.norm() / 0.01).softmax(-1)[0]
    return p, z, scores[0].tolist()


@pytest.mark.parametrize(("base", "w"), [(True, 0.35), (False, 0.65)])
def test_ensemble_arithmetic(base, w):
    p, z, scores = ensemble(ScoreConfig(renormalize=False), base)
    assert scores[0] == pytest.approx(p[1].item() ** (1 - w) * z[1].item() ** w * 0.5**3, rel=1e-4)
    assert scores[1] == pytest.approx(p[2].item() ** 0.35 * z[2].item() ** 0.65 * 0.5**3, rel=1e-4)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_demo_does_not_favour_novel_labels(preset):
    scores = preset.finetune.detector.scores
    assert ensemble(scores, True)[2] == ensemble(scores, False)[2]
    assert ensemble(ScoreConfig(), True)[2] != ensemble(ScoreConfig(), False)[2]


def test_ensemble_renormalised_with_the_detectors_background():
    p, _z, raw = ensemble(ScoreConfig(renormalize=False), True)
    _, _, scores = ensemble(ScoreConfig(), True)
    total = p[0].item() + sum(raw) * 8
    assert scores == pytest.approx([value / total for value in raw], rel=1e-4)


def test_detector_alone():
    p, _, scores = ensemble(ScoreConfig(), True, frozen=False)
    assert scores == pytest.approx((p[1:] * 0.125).tolist(), rel=1e-4)


def test_each_score_alone():
    _, z, by_frozen = ensemble(scored_by(ScoreConfig(vlm=False), "frozen"), True)
    assert by_frozen == pytest.approx((z[1:] * 0.125).tolist(), rel=1e-4)
    assert scored_by(ScoreConfig(vlm=False), "frozen").vlm  # so that it is computed, and not for the detector
    assert not scored_by(ScoreConfig(), "detector").vlm


def test_frozen_embedding_is_the_mean_over_the_box():
    # On a map that rises linearly, the mean over a box is the value at its centre.
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    tokens = torch.stack([x, y], dim=-1).reshape(1, 80, 2)
    boxes = torch.tensor([[16.0, 8.0, 48.0, 32.0]])
    found = frozen_embeddings(tokens, (8, 10), [boxes], 8, 14)
    # Token i covers pixels 8 i to 8 i + 8, so its centre is at 8 i + 4.
    torch.testing.assert_close(found, torch.tensor([[(32 - 4) / 8, (20 - 4) / 8]]))
