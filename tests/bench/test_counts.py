"""The page of the kernels' counts: what it promises, and that it is that of these sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfmvit.bench import counts, sass

PAGE = Path(__file__).parents[2] / "docs" / "kernel-counts.md"


def rows() -> dict[str, dict[str, str]]:
    """Return the lines of the table by their op."""
    head, _, *lines = (line for line in PAGE.read_text().splitlines() if line.startswith("|"))
    names = [name.strip() for name in head.split("|")[1:-1]]
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {row[0]: dict(zip(names, row, strict=True)) for row in cells}


def test_nothing_spills_and_every_row_is_there() -> None:
    assert rows().keys() == {row.op for row in counts.ROWS}
    assert {row["stack"] for row in rows().values()} == {"0"}


@pytest.mark.parametrize(
    ("op", "most", "instructions"),
    [("masked_pixel_loss forward", 1.3, 512), ("masked_pixel_loss backward", 1.3, 600)],
)
def test_predictions_keep_to_their_targets(op: str, most: float, instructions: int) -> None:
    assert float(rows()[op]["of floor"]) <= most
    assert int(rows()[op]["instructions"]) <= instructions


def test_the_page_is_that_of_the_sources() -> None:
    try:
        sass.tool("cuobjdump")
        compiler = counts.compiler()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    if f"nvcc {compiler} " not in PAGE.read_text():
        pytest.skip(f"the page is another compiler's than nvcc {compiler}")
    assert PAGE.read_text() == counts.page(), "python -m cfmvit.bench.counts --output docs/kernel-counts.md"
