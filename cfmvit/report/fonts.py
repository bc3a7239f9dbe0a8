"""Fonts for labels: the one that Pillow ships, and of the system one that has what it lacks."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from cfmvit._require import require

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_LOG = logging.getLogger(__name__)

# Files that Linux, macOS and Windows have, the widest reaching first; Pillow looks for them where the system keeps its fonts.
_SYSTEM = (
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "unifont.otf",
    "Symbola.ttf",
    "NotoEmoji-Regular.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "msgothic.ttc",
    "seguisym.ttf",
    "arial.ttf",
)
_PROBE = 16.0
_MISSING: set[str] = set()  # what has been warned of


def font(size: float, text: str = "") -> FreeTypeFont:
    """Return the font that Pillow ships, at a size in pixels; or one of the system that has more of a text's characters.

    Characters that no font has are drawn as empty boxes, which is logged once for each.
    """
    face, lacking = _face(frozenset(c for c in text if not c.isspace()))
    if new := lacking - _MISSING:
        _MISSING.update(new)
        _LOG.warning(
            "no font of this system has the characters %s: they are drawn as boxes",
            " ".join(f"U+{ord(c):04X}" for c in sorted(new)),
        )
    fonts = require("PIL.ImageFont", extra="models")
    return fonts.load_default(size) if face is None else fonts.truetype(face, size)


@cache
def _face(characters: frozenset[str]) -> tuple[str | None, frozenset[str]]:
    """Return the file of the font that lacks the fewest, None for Pillow's own, and what it lacks."""
    best: tuple[str | None, frozenset[str]] = (None, _lacking(None, characters))
    for name in _SYSTEM if best[1] else ():
        if len(lacking := _lacking(name, characters)) < len(best[1]):
            best = (name, lacking)
    return best


def _lacking(name: str | None, characters: frozenset[str]) -> frozenset[str]:
    """Return the characters that a font draws as it draws a code point that no font has."""
    probe = _probe(name)
    if probe is None:
        return characters
    unknown = _drawn(probe, "\U0010ffff")
    return frozenset(c for c in characters if _drawn(probe, c) == unknown)


@cache
def _probe(name: str | None) -> Any:
    fonts = require("PIL.ImageFont", extra="models")
    try:
        return fonts.load_default(_PROBE) if name is None else fonts.truetype(name, _PROBE)
    except OSError:  # not on this system, or not at any size
        return None


def _drawn(face: Any, character: str) -> bytes:
    return bytes(face.getmask(character))
