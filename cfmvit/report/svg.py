"""Parts of charts in SVG: text, ticks, axes. Colours are CSS variables, so a chart follows the page's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from cfmvit.report.markup import element

# The second value is what a viewer shows that knows no variables: the same SVG is a file of its own.
SERIES = tuple(
    f"var(--series-{index}, {colour})"
    for index, colour in enumerate(("#e07a1f", "#2f7d95", "#8a5bb5", "#4f8f4a", "#c2456b", "#7a7469"))
)
INK = "var(--ink, #22211f)"
MUTED = "var(--muted, #77726a)"
LINE = "var(--line, #e4dfd5)"
FONT = "ui-sans-serif, system-ui, -apple-system, Segoe UI, Roboto, sans-serif"


def text(x: float, y: float, content: str, **attributes: object) -> Markup:
    """Return text at a place."""
    return element("text", content, x=x, y=y, **{"font_size": 12, "fill": MUTED, **attributes})


def picture(width: float, height: float, parts: Sequence[Markup], label: str, left: float = 0.0) -> Markup:
    """Return a whole SVG that scales with its container; ``label`` is read to those who cannot see it.

    It reaches from ``-left`` to ``width``.
    """
    return element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"{-left or 0:g} 0 {left + width:g} {height:g}",
        width="100%",
        role="img",
        font_family=FONT,
        aria_label=label,
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``, about ``count`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive numbers; plain round numbers where those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9)]
    return ticks if len(ticks) >= 3 else nice_ticks(low, high)


def tick_label(value: float) -> str:
    """Write a tick, which is round, as it is: neighbours may differ in the fourth digit."""
    return number(value) if abs(value) >= 1e4 else f"{value:g}"


def number(value: float) -> str:
    """Write a number as short as its size allows: 0.0123, 1.25, 640, 12k, 3.1M."""
    size = abs(value)
    for limit, suffix in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e6 if suffix == 'M' else 1e3):.3g}{suffix}"
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"
