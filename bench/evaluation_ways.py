"""One evaluation in a process of its own, which holds nothing else: its time, its memory and its figures as a line of JSON.

python -m cfmvit.bench.evaluation_ways hotcoco|cfmvit FOLDER bbox|segm coco|lvis
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cfmvit.bench.resident import resident_bytes


def by_hotcoco(folder: Path, kind: str, federated: bool) -> dict[str, float]:
    """Evaluate as hotcoco's own documentation does, without a check of anything."""
    import hotcoco

    truth = hotcoco.COCO(str(folder / "truth.json"))
    load = hotcoco.LVISResults if federated else hotcoco.COCO.load_res
    found = load(truth, str(folder / "results.json"))
    evaluator = hotcoco.COCOeval(truth, found, kind, lvis_style=federated)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.run()
    return evaluator.get_results()


def by_cfmvit(folder: Path, kind: str, federated: bool) -> dict[str, float]:
    """Evaluate as ``cfmvit evaluate`` does."""
    from cfmvit.evaluation import evaluate_results

    style = "lvis" if federated else "coco"
    return evaluate_results(folder / "results.json", folder / "truth.json", style=style, iou_types=(kind,))[
        kind
    ]


WAYS: dict[str, Callable[[Path, str, bool], dict[str, float]]] = {"hotcoco": by_hotcoco, "cfmvit": by_cfmvit}


def main(way: str, folder: str, kind: str, style: str) -> None:
    """Evaluate and print; what is imported counts as memory, and not as time."""
    if way == "cfmvit":
        import cfmvit.evaluation.command  # noqa: F401
    else:
        import hotcoco  # noqa: F401
    start, busy = time.perf_counter(), time.process_time()
    figures = WAYS[way](Path(folder), kind, style == "lvis")
    took = {"seconds": time.perf_counter() - start, "core_seconds": time.process_time() - busy}
    print(json.dumps({**took, "bytes": resident_bytes("VmHWM"), "figures": figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
