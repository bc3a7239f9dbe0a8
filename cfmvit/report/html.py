"""The report: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cfmvit._io import atomic_write
from cfmvit.report.images import to_picture
from cfmvit.report.style import SCRIPT, STYLE, patch_pattern

JPEG_QUALITY = 90


@dataclass(frozen=True)
class Card:
    """A headline figure: what it is worth, what it is, and a remark. ``novel`` gives it the accent."""

    value: str
    label: str
    note: str = ""
    novel: bool = False


class Report:
    """Collects parts in the order of the calls; every method returns the report.

    All text is escaped; ``code`` between backticks and **bold** between double asterisks are marked up. Nothing is
    loaded from elsewhere when the file is opened.

    Args:
        title: printed large, and the page's title.
        subtitle: one or two sentences under it.
        facts: short remarks shown as chips: device, data, date.
    """

    def __init__(self, title: str, subtitle: str = "", facts: Sequence[str] = ()) -> None:
        self._title = title
        self._subtitle = subtitle
        self._facts = facts
        self._sections: list[tuple[str, str]] = []
        self._body: list[str] = []
        self._open = False

    def cards(self, cards: Sequence[Card]) -> Report:
        """Add headline figures side by side; before the first section they lie over the page's head."""
        boxes = []
        for card in cards:
            kind = "card novel" if card.novel else "card"
            note = f"<small>{_inline(card.note)}</small>" if card.note else ""
            boxes.append(
                f'<div class="{kind}"><b>{escape(card.value)}</b><span>{_inline(card.label)}</span>{note}</div>'
            )
        return self._add(f'<div class="cards">{"".join(boxes)}</div>')

    def section(self, title: str, text: str = "") -> Report:
        """Begin a section; the head of the page links to it."""
        if self._open:
            self._body.append("</section>")
        self._open = True
        anchor = f"section-{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        self._body.append(f'<section id="{anchor}"><h2>{escape(title)}</h2>')
        return self.text(text) if text else self

    def text(self, text: str) -> Report:
        """Add paragraphs, parted by blank lines."""
        return self._add("".join(f"<p>{_inline(part)}</p>" for part in re.split(r"\n\s*\n", text.strip())))

    def figure(self, image: Any, caption: str = "") -> Report:
        """Add one picture: a PIL image, a path, an array (H, W, 3) or a tensor (3, H, W)."""
        return self._add(_figure(image, caption))

    def grid(self, items: Sequence[tuple[Any, str]], *, cell: int = 260) -> Report:
        """Add pictures with captions, as many in a row as fit.

        Args:
            cell: least width of a picture in CSS pixels.
        """
        pictures = [to_picture(image, "Report") for image, _ in items]
        ratios = [picture.width / picture.height for picture in pictures]
        # Pictures of one shape stand in columns; of several shapes, in rows of one height.
        kind = "grid mixed" if ratios and max(ratios) > 1.05 * min(ratios) else "grid"
        figures = "".join(
            _figure(picture, caption) for picture, (_, caption) in zip(pictures, items, strict=True)
        )
        return self._add(f'<div class="{kind}" style="--cell:{cell:d}px">{figures}</div>')

    def legend(self) -> Report:
        """Say how overlays mark novel and base categories."""
        return self._add(
            '<ul class="legend"><li><i class="novel"></i>★ novel: no box of it was seen in training</li>'
            "<li><i></i>base: trained with boxes</li></ul>"
        )

    def svg(self, *charts: str, caption: str = "") -> Report:
        """Add charts made by this package (trusted markup), side by side where the page is wide enough."""
        note = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        if len(charts) == 1:
            return self._add(f'<figure><div class="chart">{charts[0]}</div>{note}</figure>')
        boxes = "".join(f'<figure class="chart">{chart}</figure>' for chart in charts)
        return self._add(f'<div class="charts">{boxes}</div>{note}')

    def table(
        self,
        columns: Mapping[str, Mapping[str, Any]],
        *,
        caption: str = "",
        percent: bool = True,
        best: bool = True,
        highlight: Collection[str] = (),
    ) -> Report:
        """Add a table of ``{column: {row: value}}``, what ``evaluate_results`` returns for one or several models.

        Args:
            percent: floats are fractions, written as 100 x with one decimal.
            best: bold for the highest float of each row.
            highlight: rows that stand out, those of novel categories.
        """
        rows = list(dict.fromkeys(row for column in columns.values() for row in column))
        head = "".join(f'<th scope="col">{_inline(name)}</th>' for name in columns)
        lines = []
        for row in rows:
            values = [column.get(row) for column in columns.values()]
            numbers = [value for value in values if isinstance(value, float) and math.isfinite(value)]
            top = max(numbers) if best and len(numbers) > 1 else None
            cells = "".join(_cell(value, percent, top) for value in values)
            kind = ' class="novel"' if row in highlight else ""
            lines.append(f'<tr{kind}><th scope="row">{_inline(row)}</th>{cells}</tr>')
        title = f"<caption>{_inline(caption)}</caption>" if caption else ""
        return self._add(
            f'<div class="scroll"><table>{title}<thead><tr><th></th>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )

    def facts(self, facts: Mapping[str, Any]) -> Report:
        """Add names and values: the machine, versions, timings."""
        lines = "".join(
            f"<dt>{_inline(name)}</dt><dd>{_inline(str(value))}</dd>" for name, value in facts.items()
        )
        return self._add(f'<dl class="facts">{lines}</dl>')

    def details(self, summary: str, text: str) -> Report:
        """Add preformatted text that opens on a click: a config, a log."""
        return self._add(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")

    def render(self) -> str:
        """Return the whole page."""
        chips = "".join(f"<li>{escape(fact)}</li>" for fact in self._facts)
        links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in self._sections)
        first = next(
            (index for index, part in enumerate(self._body) if part.startswith("<section")), len(self._body)
        )
        nav = [f"<nav>{links}</nav>"] if len(self._sections) > 1 else []
        body = [*self._body[:first], *nav, *self._body[first:], "</section>" if self._open else ""]
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{STYLE}</style></head><body>"
            f'<header>{patch_pattern()}<div class="wrap"><h1>{escape(self._title)}</h1>'
            f"<p>{_inline(self._subtitle)}</p>{f'<ul class=chips>{chips}</ul>' if chips else ''}</div></header>"
            f'<main class="wrap">{"".join(body)}<footer>Made by cfmvit.</footer></main>'
            f'<dialog><img alt="" src="data:,"></dialog><script>{SCRIPT}</script></body></html>\n'
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all, and return its path."""
        page = self.render()
        with atomic_write(path, "w") as file:
            file.write(page)
        return Path(path)

    def _add(self, markup: str) -> Report:
        self._body.append(markup)
        return self


def _inline(text: str) -> str:
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", marked)


def _cell(value: Any, percent: bool, top: float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "<td>–</td>"
    if not isinstance(value, float):
        return f"<td>{_inline(str(value))}</td>"
    shown = f"{100 * value:.1f}" if percent else f"{value:.4g}"
    return f'<td class="best">{shown}</td>' if value == top else f"<td>{shown}</td>"


def _figure(image: Any, caption: str) -> str:
    picture = to_picture(image, "Report")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    note = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
    return (
        f'<figure style="--ratio:{picture.width / picture.height:.4f}"><button class="zoom" type="button" aria-label="enlarge"><img alt="{escape(re.sub("[`*]", "", caption))}" '
        f'width="{picture.width}" height="{picture.height}" style="height:auto" loading="lazy" '
        f'src="data:image/jpeg;base64,{data}"></button>{note}</figure>'
    )
