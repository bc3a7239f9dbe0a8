"""The regions family's CUDA kernels, emulated, against the reference in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops.regions import reference

from .emulator import DTYPES, Emulator, assert_matches, rand

B = 2
NAN, INF = float("nan"), float("inf")
CHANNELS = (1, 31, 32, 33, 257)
# P, Q, sampling ratio, aligned
SAMPLINGS = ((3, 2, 2, 1), (2, 3, -1, 0), (1, 1, 3, 1))


def boxes(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes inside, across and beyond maps of about 12 x 15, tiny to huge, some inverted, empty, or of no image."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 22 - 4
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 3 * 30
    size[::7] = -size[::7]
    size[3::11] = 0
    size[5::13] *= 1000
    image = torch.randint(0, B, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + size], 1).to(dtype)


def hostile() -> Tensor:
    """Boxes that are not finite or beyond any map, and numbers of images that there are not."""
    values = torch.tensor(list(itertools.product((NAN, INF, -INF, 3e38, -3e38, -1e9, 0.0, 7.5), repeat=4)))
    rois = torch.cat([torch.zeros(len(values), 1), values], 1)[::29]
    strangers = torch.tensor([[image, 1.0, 1, 5, 5] for image in (-1, B, NAN, INF, -INF, 1e30, -0.5)])
    return torch.cat([rois, strangers, boxes(3)])


def known(rois: Tensor) -> Tensor:
    """What the reference, which expects boxes of images that there are, is given in place of the others."""
    rois = rois.clone()
    rois[~((rois[:, 0] >= 0) & (rois[:, 0] < B))] = torch.tensor([0, NAN, 0, 0, 0], dtype=rois.dtype)
    return rois


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def check_align(
    regions: Emulator,
    maps: list[Tensor],
    rois: Tensor,
    sampling: tuple[int, ...],
    levels: Tensor | None = None,
    last: bool = True,
    lead: int = 0,
) -> None:
    """Both passes, for maps (B, C, H, W) of any layout."""
    p, q, ratio, aligned = sampling
    scales = torch.tensor([1.0, 0.5, 0.25][: len(maps)], dtype=torch.float64)
    shared = {
        "rois": rois,
        "levels": levels,
        "scales": scales,
        "sampling": torch.tensor(sampling),
        "channels_last": int(last),
    }
    found = regions("align", {**{f"map{i}": x for i, x in enumerate(maps)}, **shared}, lead=lead)["out"]
    found = found.permute(0, 3, 1, 2) if last else found
    leaves = [x.double().requires_grad_() for x in maps]
    of = torch.zeros(len(rois), dtype=torch.int64) if levels is None else levels
    truth = reference.multilevel_roi_align(
        leaves, known(rois), of, scales.tolist(), p, q, ratio, bool(aligned)
    )
    assert_matches(found, truth.detach())

    grad = rand(*truth.shape, dtype=maps[0].dtype, seed=3)
    expected = torch.autograd.grad(truth, leaves, grad.double())
    sizes = torch.tensor([x.shape[2:] for x in maps])
    for layout in (grad, channels_last(grad)) if lead == 0 else (channels_last(grad),):
        given = {"grad": layout, "sizes": sizes, "images": B, **shared}
        found_maps = regions("align_backward", given, lead=lead)
        for i, e in enumerate(expected):
            x = found_maps[f"map{i}"]
            # Sums over many boxes: held to the size of the largest.
            scale = max(1.0, float(e.abs().max()))
            assert_matches(((x.permute(0, 3, 1, 2) if last else x).double() / scale).to(x.dtype), e / scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("last", [True, False], ids=["NHWC", "NCHW"])
def test_roi_align(regions: Emulator, last: bool, channels: int, dtype: torch.dtype) -> None:
    sampling = SAMPLINGS[channels % 3]
    x = rand(B, channels, 12, 15, dtype=dtype)
    check_align(regions, [channels_last(x) if last else x], boxes(25), sampling, last=last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_roi_align_in_vectors(regions: Emulator, dtype: torch.dtype) -> None:
    """Channels in vectors of 16 bytes, more than one block of them; addresses and rows that no vector fits; boxes in float64."""
    wide = channels_last(rand(B, 272, 5, 34, dtype=dtype))
    for sampling in SAMPLINGS:
        check_align(regions, [wide], boxes(20, torch.float64), sampling)
    check_align(regions, [wide], boxes(5), SAMPLINGS[0], lead=1)
    tokens = rand(B, 1 + 5 * 7, 40, dtype=dtype)[:, 1:, 3:35].transpose(1, 2).unflatten(2, (5, 7))
    check_align(regions, [tokens], boxes(9), SAMPLINGS[1])


@pytest.mark.parametrize("last", [True, False], ids=["NHWC", "NCHW"])
def test_rows_of_bins_on_tensor_cores(regions: Emulator, last: bool) -> None:
    """More bins a row than a product has, more rows than a tile and of a bin than four, more columns than are listed; inverted."""
    x = rand(1, 130, 14, 300, dtype=torch.bfloat16)
    x = channels_last(x) if last else x
    rois = torch.tensor([[0, -9.0, -2, 310, 20], [0, 3, 2, 9, 4], [0, 40, 3, 20, 1], [0, 4, 5, 4, 5]])
    for p, q, ratio, aligned in ((5, 10, 2, 1), (10, 9, -1, 0), (1, 1, -1, 1)):
        given = {
            "sampling": torch.tensor((p, q, ratio, aligned)),
            "scales": torch.ones(1).double(),
            "levels": None,
        }
        found = regions("align", {"map0": x, "rois": rois, "channels_last": int(last), **given})["out"]
        truth = reference.roi_align(x.double(), rois, 1.0, p, q, ratio, bool(aligned))
        assert_matches(found.permute(0, 3, 1, 2) if last else found, truth)


def test_pixels_that_a_bin_does_not_read_do_not_matter_to_products(regions: Emulator) -> None:
    x = channels_last(rand(1, 128, 9, 20, dtype=torch.bfloat16))
    given = {
        "rois": torch.tensor([[0, 2.0, 1, 16, 8]]), "levels": None, "scales": torch.ones(1).double(),
        "sampling": torch.tensor((2, 7, 1, 1)), "channels_last": 1,
    }  # fmt: skip
    expected = regions("align", {"map0": x, **given})["out"]
    x[:, 5, :4, :7], x[:, 9, 5:, 12] = NAN, INF
    found = regions("align", {"map0": x, **given})["out"]
    assert found[..., 5].isnan().any(2).tolist() == [[True, False]]
    assert found[..., 9].isinf().any(2).tolist() == [[False, True]]
    same = found.isfinite()
    torch.testing.assert_close(found[same], expected[same], rtol=1e-2, atol=1e-3)
    assert same.sum() >= same.numel() - 2 * 7


@pytest.mark.parametrize("last", [True, False], ids=["NHWC", "NCHW"])
def test_few_boxes_and_many_bins(regions: Emulator, last: bool) -> None:
    """Maps that are not copied because boxes are few; results of a box that are more than a tile."""
    large = rand(B, 9, 30, 40, dtype=torch.bfloat16)
    check_align(regions, [channels_last(large) if last else large], boxes(3), SAMPLINGS[0], last=last)
    small = rand(B, 5, 4, 6, dtype=torch.float32)
    check_align(regions, [channels_last(small) if last else small], boxes(2), (50, 45, 1, 1), last=last)


@pytest.mark.long
def test_a_block_copies_all_channels_of_many_maps(regions: Emulator) -> None:
    maps, rois = rand(1030, 70, 1, 2, dtype=torch.bfloat16), boxes(8)
    rois[:, 0] = torch.arange(8) * 147
    shared = {
        "scales": torch.ones(1, dtype=torch.float64),
        "sampling": torch.tensor((7, 7, 2, 1)),
        "channels_last": 0,
    }
    found = regions("align", {"map0": maps, "rois": rois, "levels": None, **shared})["out"]
    assert_matches(found, reference.roi_align(maps.double(), rois, 1.0, 7, 7, 2, True))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_multilevel(regions: Emulator, sampling: tuple[int, ...]) -> None:
    maps = [channels_last(rand(B, 40, h, w, dtype=torch.float32)) for h, w in ((12, 15), (6, 8), (3, 1))]
    rois = boxes(40)
    levels = torch.arange(40) % 3
    check_align(regions, maps, rois, sampling, levels)
    # Levels that there are not: as boxes that can't be read.
    strange = levels.clone()
    strange[3::5], strange[4::5] = -1, 3
    given = {
        "scales": torch.tensor([1.0, 0.5, 0.25]).double(),
        "sampling": torch.tensor(sampling),
        "channels_last": 1,
    }
    found = regions(
        "align", {**{f"map{i}": x for i, x in enumerate(maps)}, "rois": rois, "levels": strange, **given}
    )
    assert not found["out"][strange != levels].any()
    assert found["out"].isfinite().all()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["NHWC", "NCHW"])
def test_hostile_boxes(regions: Emulator, last: bool, sampling: tuple[int, ...]) -> None:
    x = rand(B, 8, 12, 15, dtype=torch.float32)
    check_align(regions, [channels_last(x) if last else x], hostile(), sampling, last=last)


@pytest.mark.parametrize("shape", [(0, 5, 6, 8), (B, 0, 6, 8), (B, 5, 6, 8)], ids=str)
def test_nothing(regions: Emulator, shape: tuple[int, ...]) -> None:
    """No images, no channels, no boxes."""
    rois = boxes(0 if shape[0] and shape[1] else 3)
    given = {
        "rois": rois,
        "scales": torch.ones(1).double(),
        "sampling": torch.tensor(SAMPLINGS[0]),
        "channels_last": 1,
    }
    out = regions("align", {"map0": torch.zeros(shape), **given})["out"]
    assert out.shape == (len(rois), 3, 2, shape[1])
    assert not out.any()
    back = {
        "grad": torch.zeros(len(rois), shape[1], 3, 2),
        "sizes": torch.tensor([shape[2:]]),
        "images": shape[0],
    }
    assert not regions("align_backward", {**back, **given})["map0"].any()


def test_pixels_that_no_bin_reads_do_not_see_its_gradient(regions: Emulator) -> None:
    grad = torch.ones(2, 4, 1, 2)
    grad[0, :, 0, 1] = NAN
    given = {
        "rois": torch.tensor([[0, 1.0, 1, 5, 2], [1, 0, 0, 3, 3]]), "sizes": torch.tensor([[4, 9]]),
        "images": B, "scales": torch.ones(1).double(), "sampling": torch.tensor((1, 2, 1, 0)), "channels_last": 0,
    }  # fmt: skip
    found = regions("align_backward", {"grad": grad, **given})["map0"]
    alone = regions("align_backward", {"grad": grad.nan_to_num(0.0), **given})["map0"]
    unread = found.isfinite()
    assert unread.sum() == found.numel() - 4 * 2  # one sample, at a pixel of row 1 and that below
    assert torch.equal(found[unread], alone[unread])


def check_pool(
    regions: Emulator,
    tokens: Tensor,
    size: tuple[int, int],
    rois: Tensor,
    sampling: tuple[int, ...],
    normalize: bool,
) -> None:
    """Both passes, for tokens (B, prefix + H * W, C) of any strides."""
    p, q, ratio, aligned = sampling
    prefix = tokens.shape[1] - size[0] * size[1]
    shared = {
        "rois": rois, "sizes": torch.tensor(size), "scales": torch.ones(1).double(), "sampling": torch.tensor(sampling)
    }  # fmt: skip
    found = regions("pool", {"tokens": tokens, "prefix": prefix, "normalize": int(normalize), **shared})[
        "out"
    ]
    leaf = tokens[:, prefix:].double().requires_grad_()
    truth = reference.pool_regions(leaf, known(rois), *size, 1.0, p, q, ratio, bool(aligned), 0, normalize)
    assert_matches(found, truth.detach())
    grad = rand(*truth.shape, dtype=tokens.dtype, seed=3)
    (expected,) = torch.autograd.grad(truth, leaf, grad.double())
    given = {"grad": grad, "images": B, "tokens": tokens[:, prefix:] if normalize else None, **shared}
    back = regions("pool_backward", given)["tokens"]
    scale = max(1.0, float(expected.abs().max()))
    assert_matches((back.double() / scale).to(back.dtype), expected / scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_pool_regions(regions: Emulator, normalize: bool, channels: int, dtype: torch.dtype) -> None:
    tokens = rand(B, 2 + 9 * 11, channels, dtype=dtype)
    check_pool(regions, tokens, (9, 11), boxes(30), SAMPLINGS[channels % 3], normalize)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pool_regions_anywhere_in_memory(regions: Emulator, dtype: torch.dtype) -> None:
    rois = torch.cat([hostile(), boxes(10)])
    padded = F.pad(rand(B, 5 * 34, 48, dtype=dtype), (8, 8, 1, 0), value=NAN)
    check_pool(regions, padded[:, 1:, 8:56], (5, 34), rois, SAMPLINGS[0], False)  # vectors, rows with gaps
    check_pool(regions, padded[:, 1:, 8:55:2], (5, 34), rois, SAMPLINGS[1], True)
    check_pool(regions, rand(B, 17, 5 * 34, dtype=dtype).transpose(1, 2), (5, 34), rois, SAMPLINGS[2], False)


def test_boxes_are_sorted_in_their_groups(regions: Emulator) -> None:
    """Groups of more boxes than are sorted at once and of none, boxes of no group, equal keys."""
    generator = torch.Generator().manual_seed(5)
    group = (torch.rand(4600, generator=generator) < 0.03).int() * 2
    group[7::90] = -1
    key = torch.randint(0, 60, group.shape, generator=generator).int()
    found = regions("sort", {"group": group, "key": key, "groups": 3})
    expected, begin = [], [0]
    for g in range(3):
        for some in (group == g).nonzero()[:, 0].split(4096):
            expected += some[key[some].sort(stable=True).indices].tolist()
        begin.append(len(expected))
    assert begin[1] > 4096
    assert found["begin"].tolist() == begin
    assert found["out"].tolist() == expected + [-1] * (len(group) - begin[-1])


def large_boxes(count: int, width: float, height: float) -> Tensor:
    """Boxes of many taps over the whole map, with a few small ones among them."""
    generator = torch.Generator().manual_seed(7)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.6
    size = (0.3 + torch.rand(count, 2, generator=generator)) * torch.tensor([width, height])
    size[::6] = 1.5
    image = torch.arange(count) % B
    return torch.cat([image[:, None], corner, corner + size], 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pool_regions_by_products(regions: Emulator, dtype: torch.dtype) -> None:
    """Large boxes on tensor cores: tiles of several images, the last channels apart, more columns and rows than are there at once."""
    for size, channels, count, sampling in (
        ((5, 75), 72, 132, (7, 7, 2, 1)),
        ((70, 9), 8, 20, (1, 1, -1, 1)),
    ):
        tokens = rand(B, 3 + size[0] * size[1], channels, dtype=dtype)
        rois = torch.cat([large_boxes(count, size[1], size[0]), hostile()[::3]])
        check_pool(regions, tokens, size, rois, sampling, False)


def test_pixels_that_no_box_reads_do_not_matter_to_products(regions: Emulator) -> None:
    size, channels = (12, 20), 16
    tokens = rand(B, size[0] * size[1], channels, dtype=torch.bfloat16)
    rois = torch.tensor([[0, 2.0, 3, 9, 11], [1, 1, 1, 19, 11], [0, 12, 0, 19, 9]])
    given = {
        "rois": rois, "sizes": torch.tensor(size), "scales": torch.ones(1).double(), "prefix": 0, "normalize": 0,
        "sampling": torch.tensor((7, 7, 2, 1)),
    }  # fmt: skip
    expected = regions("pool", {"tokens": tokens, **given})["out"]
    hidden = tokens.view(B, *size, channels).clone()
    hidden[0, :, 10], hidden[0, 0, :10], hidden[0, 5, 15, 3] = NAN, INF, INF
    found = regions("pool", {"tokens": hidden.flatten(1, 2), **given})["out"]
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-2, atol=1e-3)
    assert found[2].isinf().tolist() == [c == 3 for c in range(channels)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("labels", [1, 31, 383, 384, 767, 768, 1279, 2000, 5000])
def test_scores(regions: Emulator, labels: int, dtype: torch.dtype) -> None:
    """Logits up to 100 either way, labels that are impossible, any norms and temperatures, every option.

    Of 384 texts a lane has 3 vectors, of 768 it has 6, of 1280 it has 10; beyond, and in float64, a block has a region, whose row of 5000 labels does
    not stay in shared memory.
    """
    rows = 5 if labels < 1000 else 3
    texts = 1 + labels
    logits, vlm = (30 * rand(rows, texts, dtype=dtype, seed=seed) for seed in (0, 1))
    logits[0, 0] = vlm[-1, -1] = -INF
    exponent, sure = rand(texts, dtype=dtype).sigmoid(), rand(rows, dtype=dtype, seed=2).sigmoid()
    exponent[0] = 0
    text, *norms = (rand(count, dtype=dtype, seed=4).exp() for count in (texts, rows, rows))
    temperatures = torch.tensor([0.5, 2.0], dtype=dtype)
    shared = {"exponent": exponent, "inverse": 1 / text, "scale": math.log2(math.e) / temperatures}
    products = {}
    for name, x, norm, temperature in zip(("detector", "vlm"), (logits, vlm), norms, temperatures):
        products[name] = x * norm[:, None] * text * temperature
        shared[f"inverse_{name}"] = 1 / norm
    for second, factor, renormalize in itertools.product((False, True), (None, sure), (0, 1)):
        given = {"detector": products["detector"], "vlm": products["vlm"] if second else None, "sure": factor}
        found = regions("scores", {**shared, **given, "renormalize": renormalize})["out"]
        exact = (
            x.double() if x is not None else None for x in (vlm if second else None, exponent[1:], factor)
        )
        expected = reference.combine_scores(logits.double(), *exact, 1.0, bool(renormalize))
        rtol = 1e-4 if dtype == torch.float32 else 1e-9  # of float32: a rounding of a logit of 100
        torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=1e-9)
    detector = products["detector"]
    detector[0, 1], detector[-1, 0] = NAN, INF
    for second in (False, True):
        given = {"detector": detector, "vlm": products["vlm"] if second else None}
        found = regions("scores", {**shared, **given, "renormalize": 1})["out"]
        assert found[[0, -1]].isnan().all()
        assert found[1:-1].isfinite().all()


def test_scores_of_certain_towers_that_disagree(regions: Emulator) -> None:
    """No probability that float32 holds is common to both: logits of 1000 that only lanes far apart have."""
    logits, vlm = torch.zeros(1, 400), torch.zeros(1, 400)
    logits[0, 7], vlm[0, 390] = 1000, 1000
    one = torch.ones(1)
    given = {
        "detector": logits, "vlm": vlm, "exponent": torch.full((400,), 0.65).index_fill_(0, torch.tensor([0]), 0),
        "inverse": torch.ones(400), "scale": torch.full((2,), math.log2(math.e)), "inverse_detector": one,
        "inverse_vlm": one, "renormalize": 1,
    }  # fmt: skip
    found = regions("scores", given)["out"]
    expected = reference.combine_scores(logits.double(), vlm.double(), torch.tensor(0.65), None, 1.0, True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-9)


def staged(regions: Emulator, x: Tensor, vlm: Tensor | None, texts: Tensor, **options) -> dict[str, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = {
        "detector": x, "vlm": vlm, "texts": texts, "chunk": 3, "power": 3.0,
        "temperatures": torch.tensor([0.01, 2.0], dtype=dtype), "exponent": rand(len(texts) - 1, dtype=dtype),
    }  # fmt: skip
    return regions("stage_scores", {**given, **options})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 40, 136, 520])
def test_embeddings_are_staged(regions: Emulator, channels: int, dtype: torch.dtype) -> None:
    """Of lengths whose squares float32 does not hold, rows of zeros, in vectors, with odd strides and as columns."""
    x, vlm, texts = (rand(count, channels, dtype=dtype, seed=count) for count in (7, 8, 5))
    large, small = (1e25, 1e-13) if dtype != torch.float16 else (1e4, 1e-3)
    x[1], x[2], x[3], x[6] = 0, x[2] * large, x[3] * small, x[6] * 1e-3
    texts[2], texts[3] = texts[2] * small, 0
    vlm = vlm[1:]
    layouts = (lambda x: x, lambda x: x.T.contiguous().T, lambda x: F.pad(x, (1, 0))[:, 1:])
    objectness = rand(7, dtype=torch.float64 if dtype == torch.float64 else torch.float32).sigmoid()
    for layout, second in itertools.product(layouts, (False, True)):
        given = [layout(x), layout(vlm) if second else None, layout(texts)]
        found = staged(regions, *given, objectness=objectness if second else None)
        towers = torch.stack([x, vlm] if second else [x], 1)
        for rows, name in ((towers, ""), (texts, "_texts")):
            norm = rows.double().norm(dim=-1).clamp(min=1e-12)
            wide = dtype in (torch.float32, torch.float64)
            exact = rows.double() / norm[..., None] if wide else rows.double()
            inverse = torch.ones_like(norm) if wide else 1 / norm
            assert_matches(found[f"staged{name}"], exact)
            torch.testing.assert_close(
                found[f"inverse{name}"][: len(rows)].double(), inverse, rtol=2.5e-7, atol=0
            )
        assert (found["inverse_texts"][5:] == 1).all()
        assert (found["exponents"][5:] == 0.5).all()
        assert found["exponents"][:5].tolist() == [0, *rand(4, dtype=found["exponents"].dtype).tolist()]
        torch.testing.assert_close(
            found["scale"].double(), math.log2(math.e) / torch.tensor([0.01, 2.0]).double()
        )
        if second:
            torch.testing.assert_close(found["sure"], objectness**3)


def test_what_is_not_finite_stays_so_when_staged(regions: Emulator) -> None:
    x, texts = rand(4, 48, dtype=torch.bfloat16), rand(3, 48, dtype=torch.bfloat16, seed=1)
    x[0, 5], x[1, 47], x[2, 0] = NAN, INF, -INF
    found = staged(regions, x, None, texts, temperatures=torch.tensor([-1.0, NAN]))
    assert torch.equal(found["staged"][:, 0].view(torch.int16), x.view(torch.int16))
    products = found["staged"][:, 0].double() * found["inverse"].double()
    assert not products.isfinite().all(1)[:3].any()
    assert products[3].isfinite().all()
    assert found["scale"].isnan().all()
