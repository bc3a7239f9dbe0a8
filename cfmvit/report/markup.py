"""The one place where text becomes SVG or HTML: whatever is not markup already is escaped."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

# Neither XML nor HTML can hold these, not even escaped.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def element(tag: str, /, *content: object, **attributes: object) -> Markup:
    """Return one element.

    Args:
        content: what stands in it; a `Markup`, as this function returns, as it is, everything else escaped.
        attributes: escaped. Underscores become hyphens, one at the end is dropped (``class_``); None leaves one out,
            True writes the name alone.
    """
    parts = [
        _attribute(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    ]
    return Markup(f"<{tag}{''.join(parts)}>{join(*content)}</{tag}>")


def void(tag: str, /, **attributes: object) -> Markup:
    """Return an element of HTML that has no content and no end, such as ``img``."""
    return Markup(element(tag, **attributes).removesuffix(f"</{tag}>"))


def join(*content: object) -> Markup:
    """Put markup and text one after another; text is escaped."""
    return Markup("".join(_text(item) for item in content))


def _text(value: object) -> Markup:
    return value if isinstance(value, Markup) else escape(_CONTROL.sub("\ufffd", str(value)))


def _attribute(name: str, value: object) -> str:
    if value is True:
        return f" {name}"
    return f' {name}="{_text(f"{value:.6g}" if isinstance(value, float) else value)}"'
