"""The region kernels in `docs/kernel-counts.md`, as the benchmark's large sizes launch them."""

from __future__ import annotations

import torch

from cfmvit.bench.counts_region_work import STEP, Scattered, Work
from cfmvit.bench.counts_rows import MULTIPROCESSORS, Row, Whole
from cfmvit.bench.draw import Draw
from cfmvit.bench.regions import STRIDE, draw_boxes, rois_of
from cfmvit.bench.registry import ENTRIES

HEADERS = ("regions_bin_rows", "regions_matmul", "regions_scatter", "regions_scores")
ITEM, BOX, TAP, SUM = 2, 20, 8, 4  # bytes of a number, of a box, of a tap, of a sum
SAMPLES = 2  # of a bin along an axis
MOST_IMAGES = 4  # whose boxes stand for all
ALIGN, GATHER, PACK = "bin_rows_kernel<BFloat16>", "gather_kernel<BFloat16, false>", "pack_kernel<BFloat16>"
SCATTER, TABLES = "scatter_kernel<BFloat16, BFloat16>", "tables_kernel<float, float>"
SPANS, LARGE = "for_each_kernel<MakeSpan<float>>", "for_each_kernel<MatmulKeys>"


def work_of(B: int, R: int, S: int, merge: bool) -> Work:
    """The boxes of a benchmark, those of its first images."""
    draw = Draw(torch.bfloat16, torch.device("cpu"))
    return Work(rois_of(draw_boxes(draw, min(B, MOST_IMAGES), R, STRIDE * S)), S, 1 / STRIDE, merge, B)


def _tables(op: str, work: Work, boxes: int) -> Row:
    y, x = (float(taps.double().sum(1).mean()) for taps in work.taps)
    samples = (7, SAMPLES, SAMPLES)
    trips = (*samples, 0, 0, 0) if work.merge else (0, 0, 0, *samples)
    moved = boxes * (BOX + TAP * (y + x) + SUM * (2 + work.taps[0].shape[1] * 2))
    return Row(f"{op}, tables", TABLES, boxes * 2 / 32, moved, trips, threads=128)


def _pack(op: str, images: int, pixels: int, channels: int) -> Row:
    tiles, stretches = images * -(-pixels // 32), -(-channels // 64)
    return Row(f"{op}, copy", PACK, tiles * 8, images * pixels * channels * ITEM * 2, trips=(0, stretches))


def _groups(op: str, boxes: int, groups: int) -> Row:
    """Of a block's eight warps one or two find boxes of its group."""
    found = min(8, 1 + 8 / groups) / 8
    trips = (1, boxes / 256 / 8, boxes / 256 / 4 * found)
    return Row(f"{op}, groups", "group_kernel", 8 * groups, boxes * SUM * 2, trips)


def _scatter(op: str, work: Work, found: Scattered, images: int, channels: int, moved: int) -> Row:
    warps = images * work.side * -(-work.side // 8) * -(-channels // 256)
    across = -(-work.side // 64) * 8
    trips = (
        0, found.readers, found.boxes, found.search, found.bins, found.search, (found.hits, found.pixels)
    )  # fmt: skip
    idle = images * work.side * across * -(-channels // 256) - warps
    return Row(f"{op}, gradient", SCATTER, warps, moved, trips, idle=idle)


def _backward(op: str, work: Work, found: Scattered, boxes: int, channels: int, copy: bool) -> Whole:
    """Of maps of so many channels; copy: whether the gradient of the bins is not in vectors."""
    bins, images = 1 if work.merge else 49, work.images
    moved = (images * work.side**2 + boxes * bins) * channels * ITEM
    sides = work.taps[0].shape[1]
    spans = Row(f"{op}, spans", SPANS, boxes / 32, boxes * 16, trips=(1, sides, 0, 0, 0))
    rows = [_tables(op, work, boxes), _groups(op, boxes, images), spans]
    rows += [_pack(op, boxes, bins, channels)] * copy + [_scatter(op, work, found, images, channels, moved)]
    return Whole(op, tuple(rows))


def roi_align() -> list[Whole]:
    """RoIAlign on maps of channels before places and of channels last."""
    B, C, S, R, P = (ENTRIES["roi_align"].sizes["large"][x] for x in "BCSRP")
    work, bins = work_of(B, R, S, False), P * P
    found, stretches = work.aligned(), C / 128
    rows = []
    for size, last in (("large", False), ("channels-last", True)):
        op = "roi_align forward" + (f", {size}" if last else "")
        trips = (
            stretches, 1, 1, found.taps / 4 / stretches, 2 / stretches, 1, 1, found.search,
            P / 4, 1, found.columns, 0, 0, 0, 0, 0, 0, 0 if last else bins / 8,
        )  # fmt: skip
        aligned = Row(
            f"{op}, results", ALIGN, B * R * 4, B * (S * S + R * bins) * C * ITEM, trips, threads=128,
            dynamic=0 if last else bins * 128 * 2, cached=B * R * found.pixels * C * ITEM,
            mma=B * R * P * found.columns * C / 8 * 4096,
        )  # fmt: skip
        copy = () if last else (_pack(op, B, S * S, C),)
        rows.append(Whole(op, (_tables(op, work, B * R), *copy, aligned)))
    of_warp = work.scattered()
    rows += [_backward("roi_align backward", work, of_warp, B * R, C, True)]
    return [*rows, _backward("roi_align backward, channels-last", work, of_warp, B * R, C, False)]


def pool_regions() -> list[Whole]:
    """The mean over a box's bins: large boxes are products."""
    B, C, S, R = (ENTRIES["pool_regions"].sizes["large"][x] for x in "BCSR")
    work, boxes, op = work_of(B, R, S, True), B * R, "pool_regions forward"
    share = float(work.large.double().mean())
    small, made = work.gathered(~work.large), work.multiplied()
    vectors, blocks = C // 8 // 32, made.tiles * -(-C // 64)
    gather = Row(
        f"{op}, small boxes", GATHER, boxes * (1 - share) * vectors, boxes * (1 - share) * C * ITEM,
        (1, 1, 1, small.columns, small.rows), threads=C // 8, idle=boxes * share * vectors,
        cached=boxes * (1 - share) * small.pixels * C * ITEM,
    )  # fmt: skip
    # Half of the warps copy a batch.
    trips = (made.images, S / 64, made.width, 1, made.height, (made.batches, 1 / 2), (made.visits, made.kept))
    products = Row(
        f"{op}, large boxes", "products_kernel<BFloat16>", blocks * 8, (B * S * S + boxes * share) * C * ITEM, trips,
        dynamic=72_336, cached=blocks * made.images * made.copied * STEP * 64 * ITEM,
        mma=made.multiplied * -(-C // 64) * 8 * 4096,
    )  # fmt: skip
    which = Row(f"{op}, which are large", LARGE, boxes / 32, boxes * SUM * 4, trips=(1,))
    of_image, each = int(boxes * share / B), 1 + boxes // B // 256  # boxes; blocks
    order = Row(
        f"{op}, order", "sort_kernel", B * each * 8, boxes * share * SUM * 3,
        (1, of_image / 256 / each, of_image / 256, 256 / 16),
    )  # fmt: skip
    rows = (_tables(op, work, boxes), which, _groups(op, boxes, B), order, products, gather)
    return [Whole(op, rows), _backward("pool_regions backward", work, work.scattered(), boxes, C, False)]


def score_regions() -> list[Whole]:
    """Scores, from the product of a chunk of regions, both towers at once."""
    R, n, C = (ENTRIES["score_regions"].sizes["large"][x] for x in "RnC")
    texts, op = 1 + n, "score_regions forward"
    row = 4 * (-(-texts // 4) + 1)
    # Tiles of 128 x 256, in whole waves of what stays in the cache.
    across = -(-texts // 256)
    tiles = 33 * 2**20 // (row * SUM) // 128 * across
    chunk = tiles // MULTIPROCESSORS * MULTIPROCESSORS // across * 128 // 2
    chunks = -(-R // chunk)
    embeds, tables = 2 * C * ITEM, 2 * row * SUM
    before = Row(
        f"{op}, what comes before", "for_each_warp_kernel<PrepareScores<BFloat16, true>>", row + chunk + R / 32,
        texts * C * ITEM + chunk * embeds + 2 * R * SUM, (C / 8 / 16 / 4, 0, 0, C / 8 / 32),
    )  # fmt: skip
    scores = Row(
        f"{op}, scores", "warp_scores_kernel<BFloat16, true, 10, 6>", R, R * (embeds + n * SUM), (C / 8 / 16 / 4,),
        threads=32, launches=chunks, cached=R * (2 * row * SUM + embeds) + chunks * MULTIPROCESSORS * tables,
    )  # fmt: skip
    return [Whole(op, (before, scores), flops=4 * R * texts * C, launches=chunks)]


def rows() -> list[Whole]:
    """All ops."""
    return [*roi_align(), *pool_regions(), *score_regions()]
