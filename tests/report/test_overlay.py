"""Overlays: what is drawn, where, and how novel categories differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cfmvit.report import gallery, overlay
from cfmvit.report.colours import category_colour, ink_on
from cfmvit.report.overlay import _outline

GREY = (128, 128, 128)


def found(**changes: Any) -> SimpleNamespace:
    fields = {
        "boxes": torch.tensor([[40.0, 60, 100, 110]]),
        "labels": ["dodo"],
        "scores": torch.tensor([0.8]),
    }
    return SimpleNamespace(**{**fields, **changes})


def grey(width: int = 160, height: int = 120) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def near(picture: Image.Image, colour: tuple[int, int, int], tolerance: int = 40) -> np.ndarray:
    """(H, W) bool: pixels of about a colour."""
    return np.abs(np.asarray(picture).astype(int) - colour).max(axis=2) <= tolerance


@pytest.mark.parametrize("novel", [True, False], ids=["novel", "base"])
def test_the_box_is_drawn_at_its_place(novel: bool) -> None:
    picture = overlay(grey(640, 480), found(boxes=[[160, 200, 480, 400]]), {"dodo"} if novel else set())
    assert picture.size == (640, 480)
    drawn = near(picture, category_colour("dodo", vivid=novel))
    # Along the right and the bottom edge, away from the label.
    assert drawn[300, 472:488].any()
    assert drawn[392:408, 400].any()
    assert not drawn[250:380, 200:460].any()
    thickness = int(drawn[300, 440:500].sum())
    assert thickness >= 4 if novel else 1 <= thickness <= 3


def test_small_images_are_enlarged_and_large_ones_kept() -> None:
    assert overlay(grey(64, 48), found(boxes=[[4, 4, 40, 40]])).size == (512, 384)
    assert overlay(grey(1000, 600), found()).size == (1000, 600)
    drawn = near(
        overlay(grey(64, 64), found(boxes=[[16, 24, 48, 56]]), {"dodo"}), category_colour("dodo", vivid=True)
    )
    rows, columns = np.nonzero(drawn)
    assert abs(columns.max() - 48 * 8) < 8
    assert abs(rows.max() - 56 * 8) < 8


def test_masks_are_outlined_and_leave_what_they_cover_to_be_seen() -> None:
    mask = np.zeros((1, 120, 160), dtype=bool)
    mask[0, 70:100, 50:90] = True
    picture = np.asarray(overlay(grey(), found(masks=mask), {"dodo"}, min_side=160)).astype(int)
    edge, inside, outside = (np.abs(picture[y, x] - GREY).max() for y, x in ((70, 70), (85, 70), (30, 140)))
    assert edge > 60
    assert 0 < inside < edge / 4
    assert outside == 0


def test_threshold_and_limit() -> None:
    two = found(boxes=[[10, 60, 60, 110], [90, 60, 150, 110]], labels=["dodo", "owl"], scores=[0.9, 0.2])
    plain = np.asarray(grey())
    for options in ({"threshold": 0.5}, {"max_detections": 1}):
        picture = np.asarray(overlay(grey(), two, min_side=160, **options))
        assert (picture[:, :80] != plain[:, :80]).any()
        assert (picture[:, 86:] == plain[:, 86:]).all()
    nothing = found(boxes=torch.zeros(0, 4), labels=[], scores=torch.zeros(0))
    assert (np.asarray(overlay(grey(), nothing, min_side=160)) == plain).all()


def test_ground_truth_has_no_scores() -> None:
    truth = SimpleNamespace(boxes=np.array([[40, 60, 100, 110]]), labels=["dodo"])
    assert np.abs(np.asarray(overlay(grey(), truth)).astype(int) - 128).max() > 20


@pytest.mark.parametrize(
    "image",
    [
        np.full((120, 160, 3), 128, np.uint8),
        np.full((120, 160), 128, np.uint8),
        torch.full((3, 120, 160), 128).byte(),
    ],
    ids=["array", "grey_array", "tensor"],
)
def test_kinds_of_images_agree(image: Any) -> None:
    before = image.clone() if isinstance(image, torch.Tensor) else image.copy()
    assert (np.asarray(overlay(image, found())) == np.asarray(overlay(grey(), found()))).all()
    assert (image == before).all()


def test_labels_stay_inside_the_picture() -> None:
    # The label of a box at the corner would begin above the picture.
    picture = overlay(
        grey(512, 512), found(boxes=[[0, 0, 500, 500]], labels=["a rather long name of a bird"]), {"owl"}
    )
    chip = near(picture, category_colour("a rather long name of a bird", vivid=False))
    rows, _columns = np.nonzero(chip[20:, :])
    assert len(rows) > 500


def test_colours_are_stable_and_readable() -> None:
    assert category_colour("red cup", vivid=True) == category_colour("red cup", vivid=True)
    assert category_colour("red cup", vivid=True) != category_colour("blue cup", vivid=True)
    assert ink_on((255, 255, 0)) != ink_on((60, 0, 160)) == (255, 255, 255)


BAD = {
    "nan_box": ({"boxes": [[0, 0, float("nan"), 5]]}, ValueError, "overlay: boxes must be finite xyxy"),
    "inverted_box": (
        {"boxes": [[9, 0, 3, 5]]},
        ValueError,
        r"x1 <= x2 and y1 <= y2, got \[9.0, 0.0, 3.0, 5.0\]",
    ),
    "fewer_scores": ({"scores": torch.zeros(0)}, ValueError, "scores must have one row per label 1, got 0"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_detections(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        overlay(grey(), found(**changes))


def test_bad_images() -> None:
    with pytest.raises(TypeError, match="overlay: image must be a PIL image"):
        overlay([1, 2], found())
    with pytest.raises(ValueError, match=r"image must be uint8 .* got float32 of shape \(3, 8, 8\)"):
        overlay(torch.zeros(3, 8, 8), found())


def test_gallery() -> None:
    sheet = gallery([grey(), grey(50, 200), grey()], columns=2, cell=64, gap=4)
    assert sheet.size == (132, 132)
    assert sheet.getpixel((32, 32)) == GREY
    assert sheet.getpixel((100, 100)) == (255, 255, 255)
    with pytest.raises(ValueError, match="gallery: pictures must not be empty"):
        gallery([])


def test_photographs_are_reduced_before_anything_is_drawn() -> None:
    picture = overlay(
        grey(4096, 3072), found(boxes=[[1024, 1024, 3072, 2048]], masks=np.ones((1, 3072, 4096), bool))
    )
    assert picture.size == (2048, 1536)
    columns = np.nonzero(near(picture, category_colour("dodo", vivid=False))[900])[0]
    assert abs(columns.min() - 512) < 12
    assert abs(columns.max() - 1536) < 12
    assert overlay(grey(9000, 2), found(boxes=[[0, 0, 9000, 2]])).size == (2048, 1)


def test_characters_without_a_font_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert overlay(grey(), found(labels=["d\U000f0000do"])).size == (512, 384)
    assert [record.getMessage() for record in caplog.records] == [
        "no font of this system has the characters U+F0000: they are drawn as boxes"
    ]


@pytest.mark.parametrize(("rows", "columns"), [((0, 3), (0, 40)), ((17, 30), (38, 40)), ((9, 15), (20, 29))])
def test_the_edge_of_a_mask_is_looked_for_around_it_alone(
    rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    mask = np.zeros((30, 40), bool)
    mask[slice(*rows), slice(*columns)] = True
    canvas = np.full((30, 40, 3), 100, np.float32)
    _outline(canvas, mask, (255, 0, 0), 0.5)
    inner = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(5))) / 255
    share = 0.5 * (mask - 0.9 * inner)[..., None]
    np.testing.assert_allclose(canvas, 100 + share * (np.array([255, 0, 0]) - 100), rtol=1e-6)
