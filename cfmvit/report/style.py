"""The look of the report: one style sheet for light, dark, narrow and printed pages, and the script that enlarges pictures."""

from __future__ import annotations

from markupsafe import Markup

from cfmvit.report.markup import element

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #faf8f4; --panel: #ffffff; --ink: #22211f; --muted: #6f6a62; --line: #e6e1d7; --code: #f2eee6;
  --novel: #b45309; --novel-soft: #fdf0dc; --shadow: 0 1px 2px rgb(60 45 20 / 6%), 0 8px 28px rgb(60 45 20 / 8%);
  --series-0: #e07a1f; --series-1: #2f7d95; --series-2: #8a5bb5; --series-3: #4f8f4a; --series-4: #c2456b;
  --series-5: #7a7469;
}
@media (prefers-color-scheme: dark) { :root {
  --paper: #131417; --panel: #1b1d22; --ink: #eceae5; --muted: #a09b92; --line: #2d3037; --code: #23262c;
  --novel: #fbbf5a; --novel-soft: #33281a; --shadow: 0 1px 2px rgb(0 0 0 / 40%), 0 8px 28px rgb(0 0 0 / 32%);
  --series-0: #f79a4b; --series-1: #5cb4cd; --series-2: #b68fe0; --series-3: #86c47f; --series-4: #ec7a9a;
  --series-5: #aaa398;
} }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
header { position: relative; overflow: hidden; color: #fff; background: linear-gradient(115deg, #16202c, #1d3444 55%, #24525e); }
header > svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.wrap { position: relative; max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header .wrap { padding-top: 64px; padding-bottom: 104px; }
h1 { margin: 0 0 14px; font-size: clamp(30px, 5vw, 50px); line-height: 1.1; letter-spacing: -0.025em; font-weight: 750; text-wrap: balance; }
header p { margin: 0; max-width: 44em; font-size: 18px; color: rgb(255 255 255 / 82%); text-wrap: pretty; }
header code { background: rgb(255 255 255 / 14%); color: #fff; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin: 26px 0 0; padding: 0; list-style: none; }
.chips li { padding: 3px 12px; border: 1px solid rgb(255 255 255 / 22%); border-radius: 99px; background: rgb(255 255 255 / 8%); font-size: 13px; color: rgb(255 255 255 / 88%); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 16px; margin: 28px 0; }
header + main > .cards:first-child { margin-top: -64px; }
.card { padding: 20px 22px; border: 1px solid var(--line); border-radius: 16px; background: var(--panel); box-shadow: var(--shadow); }
.card b { display: block; font-size: 38px; line-height: 1.1; letter-spacing: -0.03em; font-weight: 720; font-variant-numeric: tabular-nums; }
.card span { display: block; margin-top: 6px; font-weight: 600; font-size: 14.5px; }
.card small { display: block; margin-top: 3px; color: var(--muted); font-size: 13px; line-height: 1.45; }
.card.novel { border-color: color-mix(in srgb, var(--novel) 40%, var(--line)); background: linear-gradient(160deg, var(--novel-soft), var(--panel) 75%); }
.card.novel b { color: var(--novel); }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 30px 0 0; padding: 0 0 14px; border-bottom: 1px solid var(--line); font-size: 14px; }
nav a { color: var(--muted); text-decoration: none; }
nav a:hover { color: var(--novel); }
section { padding: 34px 0 6px; }
h2 { margin: 0 0 8px; font-size: 26px; line-height: 1.25; letter-spacing: -0.015em; font-weight: 700; }
p { max-width: 46em; margin: 0 0 16px; text-wrap: pretty; }
section > p { color: color-mix(in srgb, var(--ink) 84%, var(--paper)); }
code { padding: 1px 5px; border-radius: 5px; background: var(--code); font: 0.88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
figure { margin: 20px 0; }
figure img, .zoom { display: block; max-width: 100%; border-radius: 10px; }
.zoom { padding: 0; border: 0; background: none; cursor: zoom-in; }
.zoom:focus-visible { outline: 3px solid var(--novel); outline-offset: 3px; }
figcaption { margin-top: 8px; color: var(--muted); font-size: 13.5px; line-height: 1.45; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--cell)), 1fr)); gap: 18px; margin: 20px 0; }
.grid.mixed { display: flex; flex-wrap: wrap; }
.grid.mixed::after { content: ""; flex: 1e4 1 0; }
.grid.mixed > figure { flex: var(--ratio) 1 calc(var(--cell) * 0.8 * var(--ratio) + 22px); }
.grid figure { margin: 0; padding: 10px 10px 12px; border: 1px solid var(--line); border-radius: 14px; background: var(--panel); }
.grid .zoom, .grid img { width: 100%; }
.grid figcaption { padding: 0 4px; }
.chart { padding: 18px 18px 12px; border: 1px solid var(--line); border-radius: 16px; background: var(--panel); }
.chart svg { display: block; max-width: 820px; margin: 0 auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px; margin: 20px 0; }
.charts figure { margin: 0; }
.scroll { overflow-x: auto; margin: 20px 0; border: 1px solid var(--line); border-radius: 16px; background: var(--panel); }
.scroll.tall { max-height: 70vh; overflow-y: auto; }
.tall thead th { position: sticky; top: 0; background: var(--panel); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding: 12px 18px 0; text-align: left; color: var(--muted); font-size: 13.5px; }
th, td { padding: 8px 18px; text-align: right; border-top: 1px solid var(--line); white-space: nowrap; }
tr > :first-child { text-align: left; }
thead th { border-top: 0; color: var(--muted); font-size: 13px; font-weight: 600; }
tbody th { font-weight: 500; }
td.best { font-weight: 750; }
tr.novel > * { background: var(--novel-soft); }
tr.novel th { color: var(--novel); font-weight: 650; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 6px 26px; margin: 20px 0; font-size: 14.5px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 8px 26px; margin: 14px 0 0; padding: 0; list-style: none; color: var(--muted); font-size: 13.5px; }
.legend i { display: inline-block; width: 26px; height: 17px; margin-right: 8px; vertical-align: -3px; border: 1.5px solid #8fa3ad; border-radius: 3px; }
.legend i.novel { border: 3.5px solid #f59e0b; }
details { margin: 14px 0; border: 1px solid var(--line); border-radius: 12px; background: var(--panel); }
summary { padding: 11px 18px; cursor: pointer; font-weight: 600; font-size: 14.5px; }
pre { margin: 0; padding: 14px 18px; overflow-x: auto; border-top: 1px solid var(--line); font: 13px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
footer { margin: 46px 0 0; padding: 20px 0 46px; border-top: 1px solid var(--line); color: var(--muted); font-size: 13px; }
dialog { padding: 0; border: 0; max-width: 96vw; max-height: 96vh; background: none; cursor: zoom-out; }
dialog::backdrop { background: rgb(10 10 12 / 86%); }
dialog img { display: block; max-width: 96vw; max-height: 96vh; min-width: min(70vw, 900px); object-fit: contain; border-radius: 10px; }
@media (max-width: 600px) { header > svg { opacity: 0.4; } .wrap { padding: 0 18px; } header .wrap { padding-top: 44px; } .facts { grid-template-columns: 1fr; } .facts dd { margin-bottom: 8px; } th, td { padding: 9px 12px; } }
@media print { .scroll.tall { max-height: none; } header { print-color-adjust: exact; -webkit-print-color-adjust: exact; } .card, .grid figure, .chart { box-shadow: none; break-inside: avoid; } nav { display: none; } }
"""

SCRIPT = """
const dialog = document.querySelector("dialog"), large = dialog.querySelector("img");
document.addEventListener("click", (event) => {
  const button = event.target.closest(".zoom");
  if (button) {
    const small = button.querySelector("img");
    large.src = small.src; large.alt = small.alt; dialog.showModal();
  } else if (dialog.open) dialog.close();
});
"""


def patch_pattern() -> Markup:
    """The header's ground: an image's patches of which one in four is visible, as in masked pretraining."""
    columns, rows, size, gap = 44, 14, 30, 4
    parts = []
    state = 7
    for index in range(columns * rows):
        state = (1103515245 * state + 12345) % 2**31
        share = state / 2**31
        x, y = index % columns * (size + gap), index // columns * (size + gap)
        fade = (x / (columns * (size + gap))) ** 1.6  # the text stands on the quiet left side
        if share < 0.25:
            colour, opacity = ("#ffb454", 0.55 * fade) if share < 0.06 else ("#9fd8e0", 0.30 * fade)
        else:
            colour, opacity = "#ffffff", 0.035
        parts.append(
            element("rect", x=x, y=y, width=size, height=size, rx=5, fill=colour, opacity=f"{opacity:.3f}")
        )
    box = f"0 0 {columns * (size + gap)} {rows * (size + gap)}"
    return element("svg", *parts, viewBox=box, preserveAspectRatio="xMaxYMid slice", aria_hidden="true")
