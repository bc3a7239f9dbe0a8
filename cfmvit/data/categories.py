"""Categories, and which of them are base, novel, or left out: the same rule for training and for evaluation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cfmvit._io import parse_json
from cfmvit.data.splits import COCO_BASE, COCO_NAMES, COCO_NOVEL, LVIS_V1_COUNT, LVIS_V1_RARE
from cfmvit.data.storage import read

VocabularyRule = Literal["auto", "ovd", "lvis", "all", "file", "transfer"]

# From so many of COCO's 80 names on, a file that holds no other names is taken for COCO's own: fewer are somebody's own
# choice of categories, of which none should be novel unasked.
_COCO_AT_LEAST = len(COCO_NAMES) // 2


@dataclass(frozen=True)
class Category:
    """A category: its id in the file, its name, LVIS's frequency (r, c, f) where it has one, and whether it is novel."""

    id: int
    name: str
    frequency: str | None
    novel: bool


@dataclass(frozen=True)
class CategorySplit:
    """The categories of a file that take part, in the order of their ids.

    Attributes:
        left_out: names of the others.
        reason: how base and novel were told apart, in words.
    """

    categories: list[Category]
    left_out: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        """Say how many of each there are, and why."""
        novel = sum(category.novel for category in self.categories)
        left = f", {len(self.left_out)} left out" if self.left_out else ""
        return (
            f"{len(self.categories)} categories ({len(self.categories) - novel} base, {novel} novel{left}: "
            f"{self.reason})"
        )


def split_categories(
    entries: list[dict[str, Any]], source: Path, vocabulary: VocabularyRule = "auto"
) -> CategorySplit:
    """Tell base and novel categories of a COCO or LVIS file apart.

    Args:
        entries: the file's ``{"id", "name"}``.
        vocabulary: ``"ovd"``: COCO's open-vocabulary split, 48 base and 17 novel categories, found by name; others are
            left out. ``"lvis"``: LVIS v1's 337 rare categories are novel, the other 866 base; by the file's frequencies, or by id
            where it has none. ``"all"``: all are base. ``"file"``: novel are those with ``"novel": true``. ``"transfer"``: all
            are novel, for data that a detector knows nothing of. ``"auto"``: rare ones are novel where categories have a
            frequency; else as the file says where any says ``novel``; else ``"ovd"`` where all names are COCO's, and at
            least half of those; else ``"all"``.

    Raises:
        ValueError: a rule that does not fit the file, a frequency other than r, c and f, a ``novel`` that is no bool, or
            two categories of one name.
    """
    if vocabulary not in get_args(VocabularyRule):
        raise ValueError(
            f"data: vocabulary must be one of {', '.join(get_args(VocabularyRule))}, got {vocabulary!r}"
        )
    roots = _roots(entries)
    entries = sorted((e for e in entries if e["id"] not in roots), key=lambda entry: entry["id"])
    _check(entries, source)
    found = _split(entries, source, vocabulary)
    return replace(found, left_out=(*found.left_out, *roots.values()))


def _split(entries: list[dict[str, Any]], source: Path, vocabulary: VocabularyRule) -> CategorySplit:
    names = {name_of(entry) for entry in entries}
    if vocabulary == "transfer":
        found = [Category(e["id"], name_of(e), e.get("frequency"), True) for e in entries]
        return CategorySplit(found, (), "all are novel to the detector")
    if vocabulary == "lvis":
        return _by_lvis(entries, source)
    if vocabulary == "auto" and entries and any("frequency" in entry for entry in entries):
        return _by_frequency(entries, source)
    if vocabulary == "file" or (vocabulary == "auto" and any("novel" in entry for entry in entries)):
        return _by_flag(entries, source)
    coco = names <= COCO_NAMES and len(names) >= _COCO_AT_LEAST
    if vocabulary == "ovd" or (vocabulary == "auto" and coco):
        return _by_coco(entries, source)
    hint = ""
    if (
        vocabulary == "auto"
        and names & set(COCO_NOVEL.values())
        and len(names & COCO_NAMES) >= _COCO_AT_LEAST
    ):
        hint = "; its names are not COCO's alone: vocabulary=ovd would take the 48 base and 17 novel ones"
    return CategorySplit(
        [Category(e["id"], name_of(e), e.get("frequency"), False) for e in entries], (), f"all are base{hint}"
    )


def _by_frequency(entries: list[dict[str, Any]], source: Path) -> CategorySplit:
    for entry in entries:
        if entry.get("frequency") not in ("r", "c", "f"):
            raise ValueError(
                f"data: {source}: the frequency of category {entry['id']} must be r, c or f, "
                f"got {entry.get('frequency')!r}"
            )
    found = [Category(e["id"], name_of(e), e["frequency"], e["frequency"] == "r") for e in entries]
    return CategorySplit(found, (), "rare ones are novel")


def _by_lvis(entries: list[dict[str, Any]], source: Path) -> CategorySplit:
    if [entry["id"] for entry in entries] != list(range(1, LVIS_V1_COUNT + 1)):
        raise ValueError(
            f"data: {source}: vocabulary lvis needs LVIS v1's {LVIS_V1_COUNT} categories, ids 1 to {LVIS_V1_COUNT}, got "
            f"{len(entries)}"
        )
    if not any("frequency" in entry for entry in entries):
        entries = [{**e, "frequency": "r" if e["id"] in LVIS_V1_RARE else "f"} for e in entries]
    found = _by_frequency(entries, source)
    rare = {category.id for category in found.categories if category.novel}
    if rare != LVIS_V1_RARE:
        raise ValueError(
            f"data: {source}: LVIS v1 has {len(LVIS_V1_RARE)} rare categories, the file {len(rare)}; those that differ: "
            f"{', '.join(map(str, sorted(rare ^ LVIS_V1_RARE)[:5]))}"
        )
    return found


def _by_flag(entries: list[dict[str, Any]], source: Path) -> CategorySplit:
    if not any("novel" in entry for entry in entries):
        raise ValueError(f'data: {source}: vocabulary file needs categories with "novel": true, got none')
    found = [Category(e["id"], name_of(e), e.get("frequency"), e.get("novel", False)) for e in entries]
    return CategorySplit(found, (), "as the file's novel says")


def _by_coco(entries: list[dict[str, Any]], source: Path) -> CategorySplit:
    base, novel = ({name: number for number, name in split.items()} for split in (COCO_BASE, COCO_NOVEL))
    taken = [entry for entry in entries if name_of(entry) in base or name_of(entry) in novel]
    if not any(name_of(entry) in base for entry in taken):
        raise ValueError(
            f"data: {source}: vocabulary ovd needs categories with the names of COCO's, got "
            f"{', '.join(name_of(entry) for entry in entries[:5])}"
        )
    found = [Category(entry["id"], name_of(entry), None, name_of(entry) in novel) for entry in taken]
    ids = base | novel
    renumbered = sum(category.id != ids[category.name] for category in found)
    missing = len(ids) - len(found)
    remarks = [
        f"{renumbered} with ids of their own" if renumbered else "",
        f"{missing} of its 65 absent" if missing else "",
    ]
    reason = ", ".join(["COCO's open-vocabulary split by name", *(remark for remark in remarks if remark)])
    return CategorySplit(found, tuple(name_of(e) for e in entries if name_of(e) not in ids), reason)


def _roots(entries: list[dict[str, Any]]) -> dict[int, str]:
    """Return categories that only group one of the same name, as Roboflow writes its exports, by id."""
    grouped = {
        e["name"] for e in entries if isinstance(e.get("name"), str) and e.get("supercategory") == e["name"]
    }
    return {
        e["id"]: f"{e['name']} (a group)"
        for e in entries
        if e.get("name") in grouped and e.get("supercategory") in (None, "", "none")
    }


def _check(entries: list[dict[str, Any]], source: Path) -> None:
    for entry in entries:
        if not isinstance(entry.get("name"), str) or not entry["name"].strip():
            raise ValueError(
                f"data: {source}: the name of category {entry['id']} must be text, got {entry.get('name')!r}"
            )
        if not isinstance(entry.get("novel", False), bool):
            raise ValueError(
                f"data: {source}: novel of category {entry['id']} must be true or false, got {entry['novel']!r}"
            )
    twice = [name for name, count in Counter(name_of(entry) for entry in entries).items() if count > 1]
    if twice:
        ids = [entry["id"] for entry in entries if name_of(entry) == twice[0]]
        raise ValueError(
            f"data: {source}: categories must have different names, got {twice[0]!r} with the ids "
            f"{', '.join(map(str, ids))}; rename or remove all but one"
        )


def shard_categories(place: str) -> list[Category]:
    """Return the categories of the ``categories.json`` beside shards: a list of ``{"id", "name", "novel"}``.

    Raises:
        FileNotFoundError, ValueError: it is missing or malformed.
    """
    try:
        content = read(place)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data: shards with boxes need their categories, and there is no {place}"
        ) from error
    try:
        entries = parse_json(content.decode("utf-8-sig"))
        found = [Category(int(e["id"]), str(e["name"]), None, bool(e.get("novel", False))) for e in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'data: {place} must be a list of {{"id", "name", "novel"}}: {error}') from error
    if len({category.id for category in found}) < len(found):
        raise ValueError(f"data: {place} has an id twice")
    return sorted(found, key=lambda category: category.id)


def name_of(entry: dict[str, Any]) -> str:
    """LVIS writes underscores for spaces; what a text tower reads has spaces."""
    return str(entry["name"]).replace("_", " ")
