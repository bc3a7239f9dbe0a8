"""Results that are there already are evaluated without torch, whose libraries would be most of the memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cfmvit.cli import main
from cfmvit.evaluation import evaluate

from ..processes import run
from .synthetic import detections_from, read, write

PROGRAM = """
import sys
from cfmvit.cli import main
assert main(sys.argv[1:]) == 0
print("loaded:", sorted({"torch", "torchvision", "matplotlib", "PIL", "pycocotools", "lvis"} & set(sys.modules)))
"""


@pytest.mark.parametrize("name", ["coco-tiny/annotations/instances_val2017.json", "lvis_val_100.json"])
def test_results_need_no_torch(shared_data: Path, tmp_path: Path, name: str) -> None:
    annotations = shared_data / name
    found = detections_from(read(annotations), seed=4, masks=True)
    results = write(tmp_path / "results.json", found)
    options = ["--masks", "--per-category", "--output", str(tmp_path / "out")]
    printed = run(
        sys.executable,
        "-c",
        PROGRAM,
        "evaluate",
        "--results",
        str(results),
        "--annotations",
        str(annotations),
        *options,
    )
    assert printed.splitlines()[-1] == "loaded: []"
    assert "report.html" in printed
    here = evaluate(results=results, annotations=annotations, masks=True)
    for kind, figures in here.items():
        assert read(tmp_path / "out" / "metrics.json")[kind] == pytest.approx(figures, nan_ok=True)
        assert figures["AP"] > 0


def test_one_of_several_processes_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that write the same files would be in each other's way; the others don't even open them."""
    monkeypatch.setenv("RANK", "1")
    assert main(["evaluate", "--results", "nowhere.json", "--annotations", "nowhere.json"]) == 0
    monkeypatch.setenv("RANK", "0")
    assert main(["evaluate", "--results", "nowhere.json", "--annotations", "nowhere.json"]) == 2
