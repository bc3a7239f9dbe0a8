"""Where a model of another library is, in one word: ``KIND:PLACE``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfmvit.models.cfm_vit import CFMViT
from cfmvit.models.hub import PREFIX
from cfmvit.models.importing.hf import from_hf
from cfmvit.models.importing.mae import from_mae
from cfmvit.models.importing.open_clip import from_open_clip
from cfmvit.models.importing.recognise import kind_of
from cfmvit.models.importing.timm import from_timm

KINDS: dict[str, Callable[..., CFMViT]] = {
    "hf": from_hf,
    "mae": from_mae,
    "open_clip": from_open_clip,
    "timm": from_timm,
}


def import_model(place: str, **options: Any) -> CFMViT:
    """Import a model from ``KIND:PLACE``.

    Args:
        place: ``hf:FOLDER`` or ``hf:org/name``, ``open_clip:FILE``, ``open_clip:FOLDER`` or ``open_clip:hf:org/name``, ``timm:``
            alike, ``mae:FILE``.
        options: what the kind's own function takes.

    Raises:
        ValueError: no such kind, an option that the kind doesn't have, and all that its function raises.
    """
    kind, colon, rest = place.partition(":")
    if not colon or not rest or kind not in KINDS:
        raise ValueError(
            f"import: a place must look like KIND:PLACE, KIND being {', '.join(KINDS)}, got {place!r}"
        )
    foreign = {"model": ("open_clip", "timm"), "tokenizer": ("open_clip", "hf"), "heads": ("mae",)}
    for option, kinds in foreign.items():
        if option in options and kind not in kinds:
            raise ValueError(f"import: {option} is for {' and '.join(kinds)}, not for {kind}")
    if kind == "hf" and not Path(rest).exists():
        rest = PREFIX + rest.removeprefix(PREFIX)
    return KINDS[kind](rest, **options)


def import_found(path: Path, options: dict[str, Any]) -> CFMViT | None:
    """Import the checkpoint of another library in a folder; None where there is none."""
    kind = kind_of(path)
    return None if kind is None else KINDS[kind](path, **options)
