"""The short table of a record, for a page that is read from top to bottom."""

from __future__ import annotations

from os.path import relpath
from pathlib import Path
from typing import Any

from cfmvit.bench.gate import OURS
from cfmvit.bench.tables import SHORT, duration, machine_line, markdown

COLUMNS = {"forward": "forward", "both": "forward and backward"}


def summary(record: dict[str, Any], path: Path, page: Path) -> str:
    """Return markdown with a row for each op: times, and in brackets how many times faster than what it replaces.

    Args:
        record: what was read from ``path``.
        page: the markdown file that it is for, which links to the record and to the picture beside it.
    """
    results = [x for x in record["results"] if x["pass"]]
    dtypes = list(dict.fromkeys(x["dtype"] for x in results if x["family"] != "calls"))
    rows: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    calls: dict[str, dict[str, dict[str, Any]]] = {}
    for x in results:
        if x["family"] == "calls":
            calls.setdefault(x["op"].removeprefix("call_"), {})[x["pass"]] = x
        else:
            rows.setdefault((x["op"], x["size"]), {})[x["dtype"], x["pass"]] = x
    wanted = [(dtype, name) for dtype in dtypes for name in COLUMNS]
    head = ("op", "size", "replaces", *(f"{SHORT[dtype]} {COLUMNS[name]}" for dtype, name in wanted))
    if any(found.keys() & wanted for found in rows.values()):
        body = [
            (f"`{op}`", _shape(found), peer, *(_cell(found.get(which), peer) for which in wanted))
            for (op, _), found in rows.items()
            for peer in (_replaced(found),)
        ]
        parts = [machine_line(record), markdown(head, body)]
    else:
        parts = [machine_line(record)]
    if calls:
        head = (
            "a call on tiny tensors takes longer than one of ATen's by",
            "no gradient",
            "gradient recorded",
        )
        body = [
            (f"`{op}`", _more(found.get("forward")), _more(found.get("recorded")))
            for op, found in calls.items()
        ]
        parts.append(markdown(head, body))
    link = Path(relpath(path, page.parent)).as_posix()
    parts.append(f"[All figures]({link}) ([roofline]({link.removesuffix('.json')}.svg)).")
    return "\n\n".join(parts) + "\n"


def put_between_marks(page: Path, text: str, mark: str = "bench") -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in a file."""
    opening, closing = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    whole = page.read_text()
    if whole.count(opening) != 1 or whole.count(closing) != 1 or whole.index(opening) > whole.index(closing):
        raise ValueError(f"{page} must have one line {opening} and after it one line {closing}")
    head, rest = whole.split(opening)
    page.write_text(f"{head}{opening}\n{text}{closing}{rest.split(closing)[1]}")


def _shape(found: dict[Any, dict[str, Any]]) -> str:
    return " ".join(f"{name}{value}" for name, value in next(iter(found.values()))["shape"].items())


def _replaced(found: dict[Any, dict[str, Any]]) -> str:
    return next((name for x in found.values() for name in x["ratios"]), "")


def _cell(result: dict[str, Any] | None, replaced: str) -> str:
    """Time and ratio to what the row says is replaced; where that was left out, to the next peer, which is then named."""
    if result is None:
        return ""
    time = duration(result["implementations"][OURS]["seconds"]["p50"])
    for peer, ratio in result["ratios"].items():
        return f"{time} ({ratio['p50']:.3g}x{'' if peer == replaced else f' {peer}'})"
    return time


def _more(result: dict[str, Any] | None) -> str:
    if result is None or "ATen" not in result["ratios"]:
        return ""
    times = [result["implementations"][name]["seconds"]["p50"] for name in (OURS, "ATen")]
    return f"{(times[0] - times[1]) * 1e6:.1f} us"
