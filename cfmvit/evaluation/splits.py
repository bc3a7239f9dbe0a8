"""The open-vocabulary split of an annotation file's categories, by the rule that training goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfmvit.data.categories import CategorySplit, VocabularyRule, split_categories


def open_vocabulary_split(
    content: Any, source: Path, vocabulary: VocabularyRule = "auto"
) -> CategorySplit | None:
    """Return the split of an annotation file's categories, or None where all are base.

    LVIS's, which have a frequency, have groups of their own in its evaluation, so that ``"auto"`` leaves them to it.

    Args:
        content: the parsed file. One without a list of categories is left to where the file is loaded, which says what is
            wrong.

    Raises:
        ValueError: all that ``split_categories`` raises.
    """
    entries = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(_has_id(entry) for entry in entries):
        return None
    if vocabulary == "auto" and any("frequency" in entry for entry in entries):
        return None
    split = split_categories(entries, source, vocabulary)
    return split if any(category.novel for category in split.categories) else None


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), int)
