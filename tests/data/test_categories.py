"""Base, novel and left out: one rule for training and evaluation, by names and flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cfmvit.data.categories import split_categories
from cfmvit.data.splits import COCO_BASE, COCO_LEFT_OUT, COCO_NAMES, COCO_NOVEL, LVIS_V1_COUNT, LVIS_V1_RARE
from cfmvit.evaluation.splits import open_vocabulary_split

FILE = Path("a.json")
COCO = [{"id": number, "name": name} for number, name in sorted({**COCO_BASE, **COCO_NOVEL}.items())]
ALL_80 = COCO + [{"id": 100 + n, "name": name} for n, name in enumerate(sorted(COCO_LEFT_OUT))]


def counts(entries: list[dict[str, Any]], vocabulary: Any = "auto") -> tuple[int, int, int]:
    split = split_categories(entries, FILE, vocabulary)
    novel = sum(category.novel for category in split.categories)
    return len(split.categories) - novel, novel, len(split.left_out)


def test_coco_is_known_by_its_names() -> None:
    assert len(COCO_NAMES) == 80
    assert counts(ALL_80) == (48, 17, 15)
    renumbered = [{**entry, "id": number} for number, entry in enumerate(ALL_80, start=1)]
    assert counts(renumbered) == (48, 17, 15)
    assert "56 with ids of their own" in str(split_categories(renumbered, FILE))  # the first nine keep theirs
    used = COCO[:50]
    assert sum(counts(used)[:2]) == 50
    assert counts(used)[1] == sum(entry["id"] in COCO_NOVEL for entry in used)
    assert "15 of its 65 absent" in str(split_categories(used, FILE))


def test_a_name_of_its_own_makes_a_file_ones_own() -> None:
    mine = [*ALL_80, {"id": 91, "name": "drone"}]
    assert counts(mine) == (81, 0, 0)
    assert "vocabulary=ovd would take" in str(split_categories(mine, FILE))
    assert counts(mine, "ovd") == (48, 17, 16)
    assert counts([{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]) == (2, 0, 0)


def test_one_option_chooses() -> None:
    assert counts(ALL_80, "all") == (80, 0, 0)
    flagged = [{"id": 1, "name": "a"}, {"id": 2, "name": "b", "novel": True}]
    assert counts(flagged) == counts(flagged, "file") == (1, 1, 0)
    assert counts(flagged, "all") == (2, 0, 0)
    rare = [{"id": 1, "name": "a", "frequency": "f"}, {"id": 2, "name": "b", "frequency": "r"}]
    assert counts(rare) == (1, 1, 0)
    assert counts(rare, "all") == (2, 0, 0)


def test_lvis_is_866_and_337() -> None:
    plain: list[dict[str, Any]] = [{"id": n, "name": f"c{n}"} for n in range(1, LVIS_V1_COUNT + 1)]
    said = [{**entry, "frequency": "r" if entry["id"] in LVIS_V1_RARE else "c"} for entry in plain]
    assert counts(plain, "lvis") == counts(said, "lvis") == counts(said) == (866, 337, 0)
    assert counts(plain) == (LVIS_V1_COUNT, 0, 0)
    other = [*said[:12], {**said[12], "frequency": "f"}, *said[13:]]  # 13 is rare
    with pytest.raises(ValueError, match=r"has 337 rare categories, the file 336; those that differ: 13$"):
        counts(other, "lvis")
    with pytest.raises(ValueError, match=r"needs LVIS v1's 1203 categories, ids 1 to 1203, got 1202"):
        counts(said[:-1], "lvis")


def test_transfer_knows_of_no_category() -> None:
    assert counts(ALL_80, "transfer") == (0, 80, 0)


@pytest.mark.parametrize(
    ("entries", "vocabulary", "message"),
    [
        (COCO, "every", "vocabulary must be one of auto, ovd, lvis, all, file, transfer, got 'every'"),
        (COCO, "file", 'a.json: vocabulary file needs categories with "novel": true'),
        ([{"id": 1, "name": "drone"}], "ovd", "a.json: vocabulary ovd needs categories with the names of COCO's, got drone"),
        ([{"id": 1, "name": "a", "novel": "yes"}], "auto", "novel of category 1 must be true or false, got 'yes'"),
        ([{"id": 1, "name": None}], "auto", "the name of category 1 must be text, got None"),
        ([{"id": 1, "name": "a_b"}, {"id": 4, "name": "a b"}], "auto", "got 'a b' with the ids 1, 4"),
        ([{"id": 1, "name": "a", "frequency": "x"}], "auto", "must be r, c or f, got 'x'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(entries: list[dict[str, Any]], vocabulary: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_categories(entries, FILE, vocabulary)


def test_a_category_that_groups_one_of_its_name_is_left_out() -> None:
    entries = [
        {"id": 0, "name": "dog", "supercategory": "none"},
        {"id": 1, "name": "dog", "supercategory": "dog"},
    ]
    split = split_categories(entries, FILE)
    assert [category.id for category in split.categories] == [1]
    assert split.left_out == ("dog (a group)",)


def test_evaluation_goes_by_the_same_rule() -> None:
    for entries in (ALL_80, [{"id": 1, "name": "a"}, {"id": 2, "name": "b", "novel": True}]):
        assert open_vocabulary_split({"categories": entries}, FILE) == split_categories(entries, FILE)
    rare = [{"id": 1, "name": "a", "frequency": "f"}, {"id": 2, "name": "b", "frequency": "r"}]
    for content in (
        {"categories": rare},
        {"categories": [{"id": 1, "name": "a"}]},
        {"categories": []},
        {},
        [],
    ):
        assert open_vocabulary_split(content, FILE) is None
