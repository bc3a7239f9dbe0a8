"""The report: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cfmvit._io import atomic_write
from cfmvit.report.images import to_picture
from cfmvit.report.markup import element, join, void
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
        self._sections: list[tuple[str, list[Markup]]] = [
            ("", [])
        ]  # what comes before the first has no title

    def cards(self, cards: Sequence[Card]) -> Report:
        """Add headline figures side by side; before the first section they lie over the page's head."""
        boxes = []
        for card in cards:
            parts = [element("b", card.value), element("span", _inline(card.label))]
            if card.note:
                parts.append(element("small", _inline(card.note)))
            boxes.append(element("div", *parts, class_="card novel" if card.novel else "card"))
        return self._add(element("div", *boxes, class_="cards"))

    def section(self, title: str, text: str = "") -> Report:
        """Begin a section; the head of the page links to it."""
        self._sections.append((title, [element("h2", title)]))
        return self.text(text) if text else self

    def text(self, text: str) -> Report:
        """Add paragraphs, parted by blank lines."""
        return self._add(*(element("p", _inline(part)) for part in re.split(r"\n\s*\n", text.strip())))

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
        figures = [_figure(picture, caption) for picture, (_, caption) in zip(pictures, items, strict=True)]
        return self._add(element("div", *figures, class_=kind, style=f"--cell:{cell:d}px"))

    def legend(self) -> Report:
        """Say how overlays mark novel and base categories."""
        return self._add(
            element(
                "ul",
                element("li", element("i", class_="novel"), "★ novel: no box of it was seen in training"),
                element("li", element("i"), "base: trained with boxes"),
                class_="legend",
            )
        )

    def svg(self, *charts: Markup, caption: str = "") -> Report:
        """Add charts made by this package, side by side where the page is wide enough.

        Raises:
            TypeError: a chart that is text: it could hold a script.
        """
        for chart in charts:
            if not isinstance(chart, Markup):
                raise TypeError(f"Report: charts must be made by cfmvit.report, got {type(chart).__name__}")
        note = [element("figcaption", _inline(caption))] if caption else []
        if len(charts) == 1:
            return self._add(element("figure", element("div", charts[0], class_="chart"), *note))
        boxes = [element("figure", chart, class_="chart") for chart in charts]
        return self._add(element("div", *boxes, class_="charts"), *note)

    def table(
        self,
        columns: Mapping[str, Mapping[str, Any]],
        *,
        caption: str = "",
        percent: bool = True,
        best: bool = True,
        highlight: Collection[str] = (),
        tall: bool = False,
    ) -> Report:
        """Add a table of ``{column: {row: value}}``, what ``evaluate_results`` returns for one or several models.

        Args:
            percent: floats are fractions, written as 100 x with one decimal.
            best: bold for the highest float of each row.
            highlight: rows that stand out, those of novel categories.
            tall: it has many rows, and is scrolled within the page.
        """
        rows = list(dict.fromkeys(row for column in columns.values() for row in column))
        head = [element("th", _inline(name), scope="col") for name in columns]
        lines = []
        for row in rows:
            values = [column.get(row) for column in columns.values()]
            numbers = [value for value in values if isinstance(value, float) and math.isfinite(value)]
            top = max(numbers) if best and len(numbers) > 1 else None
            cells = [_cell(value, percent, top) for value in values]
            kind = "novel" if row in highlight else None
            lines.append(element("tr", element("th", _inline(row), scope="row"), *cells, class_=kind))
        title = [element("caption", _inline(caption))] if caption else []
        top_row = element("thead", element("tr", element("th"), *head))
        return self._add(
            element(
                "div",
                element("table", *title, top_row, element("tbody", *lines)),
                class_="scroll tall" if tall else "scroll",
            )
        )

    def facts(self, facts: Mapping[str, Any]) -> Report:
        """Add names and values: the machine, versions, timings."""
        lines = [
            join(element("dt", _inline(name)), element("dd", _inline(str(value))))
            for name, value in facts.items()
        ]
        return self._add(element("dl", *lines, class_="facts"))

    def details(self, summary: str, text: str) -> Report:
        """Add preformatted text that opens on a click: a config, a log."""
        return self._add(element("details", element("summary", summary), element("pre", text)))

    def render(self) -> str:
        """Return the whole page."""
        (_, before), *sections = self._sections
        anchors = [f"section-{number + 1}" for number in range(len(sections))]
        links = [element("a", title, href=f"#{anchor}") for anchor, (title, _) in zip(anchors, sections)]
        chips = [element("ul", *(element("li", fact) for fact in self._facts), class_="chips")]
        header = element(
            "div",
            element("h1", self._title),
            element("p", _inline(self._subtitle)),
            *(chips if self._facts else []),
            class_="wrap",
        )
        main = element(
            "main",
            *before,
            *([element("nav", *links)] if len(sections) > 1 else []),
            *(element("section", *body, id=anchor) for anchor, (_, body) in zip(anchors, sections)),
            element("footer", "Made by cfmvit."),
            class_="wrap",
        )
        head = element(
            "head",
            void("meta", charset="utf-8"),
            void("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", self._title),
            element("style", Markup(STYLE)),
        )
        body = element(
            "body",
            element("header", patch_pattern(), header),
            main,
            element("dialog", void("img", alt="", src="data:,")),
            element("script", Markup(SCRIPT)),
        )
        return Markup("<!doctype html>") + element("html", head, body, lang="en") + "\n"

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all, and return its path."""
        page = self.render()
        with atomic_write(path, "w") as file:
            file.write(page)
        return Path(path)

    def _add(self, *markup: Markup) -> Report:
        self._sections[-1][1].extend(markup)
        return self


def _inline(text: str) -> Markup:
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(join(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", marked))


def _cell(value: Any, percent: bool, top: float | None) -> Markup:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return element("td", "–")
    if not isinstance(value, float):
        return element("td", _inline(str(value)))
    shown = f"{100 * value:.1f}" if percent else f"{value:.4g}"
    return element("td", shown, class_="best" if value == top else None)


def _figure(image: Any, caption: str) -> Markup:
    picture = to_picture(image, "Report")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    shown = void(
        "img",
        alt=re.sub("[`*]", "", caption),
        width=picture.width,
        height=picture.height,
        style="height:auto",
        loading="lazy",
        src=f"data:image/jpeg;base64,{data}",
    )
    button = element("button", shown, class_="zoom", type="button", aria_label="enlarge")
    note = [element("figcaption", _inline(caption))] if caption else []
    return element("figure", button, *note, style=f"--ratio:{picture.width / picture.height:.4f}")
