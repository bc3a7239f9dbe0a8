"""The page of the kernels' counts: what it promises, and that it is that of these sources."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cfmvit.bench import counts, sass
from cfmvit.bench.counts_region_work import FULL, LOADS, MATMUL_TAPS, PRODUCTS, ROW, STRETCH, SUMS, Work

PAGE = Path(__file__).parents[2] / "docs" / "kernel-counts.md"


def rows() -> dict[str, dict[str, str]]:
    """Return the lines of the tables by their op."""
    found = {}
    for table in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), re.MULTILINE):
        head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        found |= {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    return found


def test_nothing_spills_and_every_row_is_there() -> None:
    assert {row.op for row in counts.ROWS} | {
        f"{op} {pass_}" for op, pass_ in product(("roi_align", "pool_regions"), ("forward", "backward"))
    } | {"score_regions forward"} <= rows().keys()
    assert {row["stack"] for row in rows().values() if row.get("kernel")} == {"0"}


@pytest.mark.parametrize(
    ("op", "most", "instructions"),
    [("masked_pixel_loss forward", 1.3, 512), ("masked_pixel_loss backward", 1.3, 600)],
)
def test_predictions_keep_to_their_targets(op: str, most: float, instructions: int) -> None:
    assert float(rows()[op]["of floor"]) <= most
    assert int(rows()[op]["instructions"]) <= instructions


@pytest.mark.parametrize(
    ("op", "most"),
    [
        ("linear_masked_cosine_loss forward", 1.8),
        ("linear_masked_cosine_loss both", 1.6),
        ("roi_align forward", 4),
        ("roi_align forward, channels-last", 3.1),
        ("pool_regions forward", 3.8),
        ("score_regions forward", 2.05),
    ],
)
def test_ops_are_no_farther_from_their_floors(op: str, most: float) -> None:
    assert float(rows()[op]["of floor"]) <= most


def test_contrastive_losses_keep_to_their_targets() -> None:
    """At 32,768 pairs of width 768: 11 ms, and epilogues that end before the other program's products do."""
    seconds, unit = rows()["info_nce both"]["without the L2"].split()
    assert unit == "ms"
    assert float(seconds) <= 9.5
    shares = [row["of the products' time"] for row in rows().values() if row.get("of the products' time")]
    assert len(shares) == 3
    assert all(int(share.rstrip("%")) < 100 for share in shares)


def test_without_nvcc_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("sys.argv", ["counts"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SystemExit):
        counts.main()
    assert "nvcc: neither on PATH nor in the package triton" in capsys.readouterr().err


def test_a_page_that_can_not_be_written_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["counts", "--output", str(tmp_path / "file" / "page.md")])
    monkeypatch.setattr(counts, "page", lambda: pytest.fail("it was made"))
    with pytest.raises(SystemExit):
        counts.main()
    assert str(tmp_path / "file") in capsys.readouterr().err


def few_boxes(*, merge: bool) -> Work:
    boxes = torch.tensor([[1, 1, 4, 4], [3, 2, 15, 15], [0, 0, 16, 16], [9, 1, 11, 14.0], [20, 20, 30, 30]])
    rois = torch.cat([F.pad(boxes, (1, 0), value=image) for image in range(2)])
    return Work(rois, side=16, scale=1, merge=merge, images=2)


def test_a_gradient_finds_every_tap_once() -> None:
    for merge in (False, True):
        work = few_boxes(merge=merge)
        y, x = work.reads
        found = work.scattered(rows=16)
        turns = found.readers * found.boxes * found.bins * found.hits
        warps = 16 * 16 / STRETCH
        taps = (y[:5].sum(2)[:, :, None] * x[:5].sum(2)[:, None]).sum()
        assert turns * found.pixels * warps * 4 * STRETCH == pytest.approx(int(taps))


def test_large_boxes_are_multiplied_where_they_read() -> None:
    work = few_boxes(merge=True)
    y, x = work.taps
    assert work.large.tolist() == [int(a) * int(b) > MATMUL_TAPS for a, b in zip(y, x)]
    found = work.multiplied()
    # One block of both images' boxes, in one stretch of columns: one product of sixteen has all rows of each image, and one warp of eight.
    rows_of_image = work.reads[0][work.large, 0][: int(work.large.sum()) // 2].any(0).sum()
    assert (found.tiles, found.images, found.copied) == (1, 2, rows_of_image)
    assert (found.batches, found.visits) == (
        -(-rows_of_image // 2),
        pytest.approx(rows_of_image / -(-rows_of_image // 2) / 8),
    )
    assert found.kept == pytest.approx((ROW + SUMS + LOADS + PRODUCTS) / FULL)
    assert found.multiplied == 2 * rows_of_image


def test_a_bin_of_one_tap_turns_once() -> None:
    one = Work(torch.tensor([[0, 0, 0, 0.01, 0.01]]), side=4, scale=1, merge=False, images=1)
    assert one.gathered(torch.ones(1, dtype=torch.bool)) == (1, 0, 1)
    assert one.aligned() == (1, 1, 2, 1)


def test_the_page_is_that_of_the_sources() -> None:
    try:
        sass.tool("cuobjdump")
        compiler = counts.compiler()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    if f"nvcc {compiler} " not in PAGE.read_text():
        pytest.skip(f"the page is another compiler's than nvcc {compiler}")
    triton = pytest.importorskip("triton")
    if f"Triton {triton.__version__}," not in PAGE.read_text():
        pytest.skip(f"the page is another Triton's than {triton.__version__}")
    assert PAGE.read_text() == counts.page(), "python -m cfmvit.bench.counts --output docs/kernel-counts.md"
