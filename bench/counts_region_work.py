"""What the region kernels find to do in the boxes of a benchmark: turns of the loops whose number depends on the boxes.

The weights of `cfmvit.ops.regions.reference` say which pixels (taps) a bin reads; the kernels walk them in the order that is said
here. Boxes are alike from image to image, so that a few images and a few stretches of their rows stand for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, log2
from typing import NamedTuple

import torch
from torch import Tensor

from cfmvit.ops.regions import reference

STRETCH = 8  # pixels of a row that a warp of scatter_kernel owns
# Of products_kernel: boxes of a block, of a warp, of a product; pixels of a product; rows that come at a time; the taps that its boxes
# have more of.
TILE, WARP, PRODUCT, STEP, BATCH, MATMUL_TAPS = 128, 16, 8, 16, 2, 12
# Instructions of a turn over a row that some product needs: once; for each product its sums; for each stretch of pixels loads; for each
# product of a stretch. Where the products do not all begin in the first stretch, 20 more zero sums: the longest way has them.
ROW, SUMS, LOADS, PRODUCTS = 10, 24, 7, 8
FULL = ROW + WARP // PRODUCT * SUMS + 64 // STEP * (LOADS + WARP // PRODUCT * PRODUCTS)
BANDS, PLACES = 8, 64  # of a map, by which its boxes are sorted


class Gathered(NamedTuple):
    """Of a bin, or of a box whose bins are one: turns over four columns and, in each, over two rows but for the last; pixels."""

    columns: float
    rows: float
    pixels: float  # of a box, each once


class Aligned(NamedTuple):
    """Of a row of bins of bin_rows_kernel."""

    taps: float  # over 32 taps of a row of bins
    columns: float  # over four columns that some bin reads, for each four rows
    search: float  # for the column of a tap
    pixels: float  # that a box reads, each once


class Scattered(NamedTuple):
    """Means of a warp of scatter_kernel: turns of a loop in one turn of that around it."""

    readers: float  # over 32 boxes each
    boxes: float  # over 32 rows of bins
    bins: float  # over 32 bins
    hits: float  # over four bins that read its pixels
    pixels: float  # share of its pixels that those bins read
    search: int  # for the first tap of a bin


class Multiplied(NamedTuple):
    """Of products_kernel."""

    tiles: float  # blocks for one stretch of channels
    images: float  # of a tile
    copied: float  # stretches of 16 columns of an image's rows that a tile reads
    batches: float  # turns over two rows, from the first to the last of these
    visits: float  # over those of them that a warp reads, to the last one
    kept: float  # share that these turns issue of what all products of a warp would
    multiplied: float  # stretches of 16 columns that products of 8 boxes multiply
    height: float  # turns of a thread over the rows of a box, and over its columns
    width: float


@dataclass(frozen=True)
class Work:
    """Boxes on maps.

    Args:
        rois: (R, 5), image after image.
        side: of the maps in pixels.
        scale: pixels of a map per unit of the boxes.
        merge: whether all bins are one.
        images: of the benchmark, for which those of rois stand.
    """

    rois: Tensor
    side: int
    scale: float
    merge: bool
    images: int

    @cached_property
    def reads(self) -> tuple[Tensor, Tensor]:
        """Which pixels each bin reads, along y and along x: (R, bins, side) bool each."""
        found = reference.box_weights(self.rois, (self.side, self.side), self.scale, (7, 7), 2, True)
        y, x = (weights != 0 for weights in found)
        return (y.any(1, keepdim=True), x.any(1, keepdim=True)) if self.merge else (y, x)

    @cached_property
    def taps(self) -> tuple[Tensor, Tensor]:
        """How many: (R, bins) each."""
        y, x = self.reads
        return y.sum(2), x.sum(2)

    @property
    def large(self) -> Tensor:
        """Which merged boxes are products, (R,) bool."""
        y, x = self.taps
        return (y * x)[:, 0] > MATMUL_TAPS

    def aligned(self) -> Aligned:
        """What bin_rows_kernel does, at a sampling ratio of 2, of which no bin reads more than four rows."""
        columns = self.reads[1].any(1).sum(1).double()
        taps = (self.taps[1].sum(1) / 32).ceil()
        pixels, fours = columns * self.reads[0].any(1).sum(1), (columns / 4).ceil()
        return Aligned(*(float(x.mean()) for x in (taps, fours, (4 * fours).log2().ceil(), pixels)))

    def gathered(self, some: Tensor) -> Gathered:
        """What gather_kernel does for some boxes whose bins are one."""
        y, x = (taps[some].double() for taps in self.taps)
        columns = (x / 4).ceil()
        rows = (columns.mean(1) * ((y - 1).clamp(min=0) / 2).mean(1)).mean() / columns.mean()
        pixels = [reads[some].any(1).sum(1).double() for reads in self.reads]
        return Gathered(float(columns.mean()), float(rows), float((pixels[0] * pixels[1]).mean()))

    def scattered(self, rows: int = 10) -> Scattered:
        """What scatter_kernel does, by so many rows of the first image."""
        y, x = (reads[self.rois[:, 0] == 0] for reads in self.reads)
        spans = [_spans(reads.any(1)) for reads in (y, x)]
        totals, warps, step = [0] * 4, 0, max(1, self.side // rows)
        for row in range(step // 2, self.side, step):
            for first in range(0, self.side, STRETCH):
                warps += 1
                here = spans[0][:, row] & spans[1][:, first : first + STRETCH].any(1)
                for batch in _batches(here):
                    for of_rows, hit in _pieces(y[batch, :, row]):
                        totals[0] += 1
                        read = x[batch[of_rows[hit]], :, first : first + STRETCH]
                        for piece in read.flatten(0, 1).split(32):
                            totals[1] += 1
                            totals[2] += ceil(int(piece.any(1).sum()) / 4)
                            totals[3] += int(piece.sum())
        boxes, bins, fours, pixels = totals
        readers, most = ceil(len(x) / 32), max(int(taps.max()) for taps in self.taps)
        return Scattered(
            readers, boxes / warps / readers, bins / boxes, fours / bins, pixels / (4 * STRETCH * fours), int(log2(most)) + 1
        )  # fmt: skip

    def multiplied(self) -> Multiplied:
        """What products_kernel does."""
        y, x = (reads[self.large, 0] for reads in self.reads)
        image = self.rois[self.large, 0].long()
        order = (image * 2**32 + self._keys(y, x)).sort(stable=True).indices
        y, x, image = y[order], x[order], image[order]
        steps = x.unflatten(1, (-1, STEP)).any(2)
        passes = copied = batches = issued = multiplied = 0
        visits = 0.0
        height, width = [], []
        for tile in torch.arange(len(order)).split(TILE):
            for of_image in image[tile].unique():
                mine = tile[image[tile] == of_image]
                passes, read = passes + 1, _spans(y[mine].any(0)[None])[0]
                for warp in tile.split(WARP):
                    some = warp[image[warp] == of_image]
                    height.append(ceil(int(y[some].sum(1).max()) / 2) if len(some) else 0)
                    width.append(ceil(int(x[some].sum(1).max()) / 2) if len(some) else 0)
                hits = torch.zeros(
                    TILE // PRODUCT, -(-int(read.sum()) // BATCH) * BATCH, steps.shape[1], dtype=torch.bool
                )
                for hit, product in zip(hits, tile.split(PRODUCT)):
                    some = product[image[product] == of_image]
                    hit[: read.sum()] = (y[some].T.double() @ steps[some].double() > 0)[read]
                multiplied, copied = multiplied + int(hits.sum()), copied + int(hits.any(0).sum())
                by_warp = hits.unflatten(0, (-1, WARP // PRODUCT))  # (warps, products, rows, stretches)
                sums, loads = by_warp.any(3).sum(1), by_warp.any(1).sum(2)
                issued += int(
                    ROW * (sums > 0).sum() + SUMS * sums.sum() + LOADS * loads.sum() + PRODUCTS * hits.sum()
                )
                last = (sums > 0).unflatten(1, (-1, BATCH)) * torch.arange(1, BATCH + 1)
                batches, visits = batches + last.shape[1], visits + int(last.amax(2).sum()) / len(last)
        tiles, share = ceil(len(order) / TILE), self.images / (int(self.rois[-1, 0]) + 1)
        return Multiplied(
            tiles * share, passes / tiles, copied / passes, batches / passes, visits / batches,
            issued / (visits * TILE / WARP * FULL), multiplied * share, sum(height) / len(height), sum(width) / len(width),
        )  # fmt: skip

    def _keys(self, y: Tensor, x: Tensor) -> Tensor:
        """By which products_kernel's boxes are sorted in their image."""
        (top, bottom), (left, right) = (
            (reads.int().argmax(1), self.side - 1 - reads.int().flip(1).argmax(1)) for reads in (y, x)
        )
        size = ((bottom - top + 1) * (right - left + 1)).log2().long() // 3
        band, place = (top + bottom) * BANDS // (2 * self.side), (left + right) * PLACES // (2 * self.side)
        return (size * BANDS + band) * PLACES + torch.where(band % 2 == 0, place, PLACES - 1 - place)


def _spans(reads: Tensor) -> Tensor:
    """From the first to the last pixel that a box reads, (R, side) bool."""
    return (reads.cumsum(1) > 0) & (reads.flip(1).cumsum(1).flip(1) > 0)


def _batches(reads: Tensor) -> list[Tensor]:
    """The boxes that read, as the kernel collects them: by 32 that it looks at, until 32 wait."""
    found, sizes = reads.nonzero()[:, 0], [0]
    for here in torch.bincount(found // 32).tolist():
        sizes += [0] * (sizes[-1] >= 32)
        sizes[-1] += here
    return [batch for batch in found.split(sizes) if len(batch)]


def _pieces(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows of bins (boxes, bins) by 32: the box of each, and whether it reads the row of the map."""
    boxes = torch.arange(len(rows)).repeat_interleave(rows.shape[1])
    return list(zip(boxes.split(32), rows.flatten().split(32)))
