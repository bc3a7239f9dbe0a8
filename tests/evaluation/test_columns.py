"""The native reader of COCO's lists, against Python's json: the same values, and whatever is odd is left to Python."""

from __future__ import annotations

import json
import locale
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfmvit.evaluation import evaluate_results
from cfmvit.evaluation.columns import Columns, Known, read_columns

KNOWN = Known(np.array([-5, 3, 2**53 + 1]), np.array([1, 7]), np.array([[60, 80], [0, 0], [5, 5]]))


def read(source: bytes | Path, odd: list[Any] | None = None, masks: bool = False) -> Columns:
    def put_right(columns: Columns, number: int, entry: Any) -> None:
        assert odd is not None, entry
        odd.append((number, entry))

    return read_columns(source, KNOWN, truth=False, boxes=True, masks=masks, put_right=put_right)


def entry(**changes: Any) -> dict[str, Any]:
    return {"image_id": 3, "category_id": 7, "bbox": [1, 2.5, 3e-2, 4], "score": 0.5, **changes}


def test_numbers_are_those_of_python(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**63, 4000).view(np.float64)
    numbers = [*np.abs(bits[np.isfinite(bits)]).tolist(), *rng.random(2000).astype(np.float32).tolist()]
    numbers += [
        0.0,
        5e-324,
        1.7976931348623157e308,
        9007199254740993,
        1e22,
        1e23,
        0.1,
        123456789012345678901234567890,
    ]
    texts = [repr(value) for value in numbers] + [
        "1E5",
        "2.50e-3",
        "0e9",
        "1234567.0000000000000000001",
        "1e-400",
        # Of twenty digits, whose value wraps to zero in 64 bits.
        "18446744073709551616",
        "18.446744073709551616",
        "1844674407370955161.6",
        "92233720368547758080",
    ]
    lists = [texts[start : start + 4] for start in range(0, len(texts) - 3, 4)]
    text = "[" + ",".join(
        f'{{"score":1,"category_id":7,"bbox":[{",".join(four)}],"image_id":3}}' for four in lists
    )
    boxes = read((text + "]").encode()).rows[:, 1:5]
    assert boxes.tolist() == [[float(value) for value in four] for four in lists]
    path = tmp_path / "results.json"
    path.write_text(" \n" + text + " ] \n")
    assert (read(path).rows[:, 1:5] == boxes).all()


def test_numbers_follow_no_locale() -> None:
    """Where the decimal point is a comma, numbers of many digits and those out of range are the same."""
    names = [name for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "de_DE") if _has_locale(name)]
    if not names:
        pytest.skip("no locale with a decimal comma is installed")
    text = json.dumps([entry(bbox=[1.5, 0.1, 1.2345678901234567890123, 3])]).encode()
    before = locale.setlocale(locale.LC_NUMERIC)
    try:
        locale.setlocale(locale.LC_NUMERIC, names[0])
        assert read(text).rows[0, 1:5].tolist() == [1.5, 0.1, 1.2345678901234567890123, 3]
        odd: list[Any] = []
        read(text.replace(b'"score": 0.5', b'"score": 1.5e999'), odd)
        assert len(odd) == 1
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)


def _has_locale(name: str) -> bool:
    before = locale.setlocale(locale.LC_NUMERIC)
    try:
        locale.setlocale(locale.LC_NUMERIC, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)
    return True


def test_a_key_with_an_escape_is_left_to_python() -> None:
    odd: list[Any] = []
    text = json.dumps([entry(), entry()]).replace('"score"', '"sc\\u006fre"', 1)
    assert len(read(text.encode(), odd).rows) == 2
    assert odd == [(0, entry())]


def test_without_the_native_reader_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text('{"images": [], "annotations": [], "categories": []}')
    monkeypatch.setitem(sys.modules, "cfmvit._coco", None)  # as if it were not there
    with pytest.raises(ImportError, match=r"the native reader can't be imported .* with: pip install \."):
        evaluate_results([], truth)


def test_a_file_longer_than_the_window(tmp_path: Path) -> None:
    # Four million bytes are read at a time; the first entry alone is longer.
    entries = [
        entry(note="x" * 9_000_000),
        *(entry(score=number / 70_000, more=[{"a": "]}"}]) for number in range(70_000)),
    ]
    path = tmp_path / "results.json"
    path.write_text("\ufeff" + json.dumps(entries, indent=1), encoding="utf-8")
    found = read(path)
    assert found.broken_at == -1
    assert found.rows[1:, 5].tolist() == [item["score"] for item in entries[1:]]


def test_places_stand_for_ids() -> None:
    text = json.dumps(
        [entry(image_id=key, category_id=name) for key, name in ((2**53 + 1, 1), (-5, 7), (3, 1))]
    )
    assert read(text.encode()).rows[:, [0, 6]].tolist() == [[2, 0], [0, 1], [1, 0]]


ODD = [
    5, None, [1], "a", {}, {"image_id": 3}, entry(image_id=4), entry(image_id="3"), entry(image_id=3.0), entry(image_id=2**70),
    entry(category_id=True), entry(score=math.nan), entry(score=-math.inf), entry(score="1"), entry(score=None),
    entry(bbox=[1, 2, 3]), entry(bbox=[1, 2, 3, 4, 5]), entry(bbox=[1, 2, -3, 4]), entry(bbox=[1, 2, math.nan, 4]),
    entry(bbox=[1, [2], 3, 4]), entry(bbox={"x": 1}), entry(bbox=None),
]  # fmt: skip


def test_what_is_odd_is_left_to_python(tmp_path: Path) -> None:
    entries = [item for odd in ODD for item in (entry(), odd)]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    for source in (path, path.read_bytes()):
        odd: list[Any] = []
        assert len(read(source, odd).rows) == len(entries)
        assert [number for number, _ in odd] == list(range(1, len(entries), 2))
        assert repr([value for _, value in odd]) == repr(ODD)


@pytest.mark.parametrize(
    "text",
    [
        "", "[", '[{"a": 1}', '[{"a": 1},]', '[{"a" 1}]', '[{"a": 01}]', '[{"a": 1.}]', '[{"a": -}]', '[{"a": tru}]', "[{}] x",
        '[{"a": "\\x"}]', '[{"a": "\n"}]', "[{,}]", '[{"a": 1,}]', "[" + "[" * 300 + "]" * 300 + "]", '[{"a": .5}]', '[{"a": 1e}]',
    ],
)  # fmt: skip
def test_what_is_no_json_says_where(tmp_path: Path, text: str) -> None:
    assert 0 <= read(text.encode(), []).broken_at <= len(text)
    truth = tmp_path / "truth.json"
    truth.write_text('{"images": [], "annotations": [], "categories": []}')
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"results\.json is not valid json: .*results\.json\[\d+\] breaks off or is"
    ):
        evaluate_results(path, truth)


@pytest.mark.parametrize("end", range(1, 150, 7))
def test_every_beginning_of_a_list_breaks_off(end: int) -> None:
    text = json.dumps(
        [entry(segmentation={"size": [60, 80], "counts": "P\\o0"}, note=["\u00e9", True, None])]
    )
    assert read(text[: min(end, len(text) - 1)].encode(), []).broken_at >= 0
