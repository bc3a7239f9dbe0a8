"""Fixtures that every part uses."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Processes side by side share the cores; torch, when it is loaded, and programs that tests start read this.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))

# Under a launcher of many processes, tests are one process all the same.
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)

OPTIONAL = (
    *(
        "PIL",
        "hotcoco",
        "hypothesis",
        "lvis",
        "open_clip",
        "pycocotools",
        "safetensors",
        "tensorboard",
        "timm",
    ),
    *("tokenizers", "torchvision", "tqdm", "transformers", "triton"),
)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip, by the package's name, a file or folder that can't be imported without an optional package."""
    report = yield
    if report.failed:
        named = re.findall(r"No module named '(\w+)|this function needs (\w+)", str(report.longrepr))
        missing = {a or b for a, b in named} & {name for name in OPTIONAL if find_spec(name) is None}
        if missing:
            report.outcome = "skipped"
            report.longrepr = (report.nodeid, 0, f"Skipped: {', '.join(sorted(missing))} not installed")
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with a test marked `first` before the others: a long one that came last would run alone."""
    early = {item.path for item in items if item.get_closest_marker("first")}
    items.sort(key=lambda item: item.path not in early)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip a test that comes upon an optional package that is missing."""
    try:
        yield
    except ImportError as error:
        if str(error).startswith("cfmvit: this function needs "):
            pytest.skip(str(error))
        raise


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the long fuzz has tried."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "fuzzed" and report.when == "call":
                terminalreporter.write_line(f"fuzzed {value}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the checkout; tests that need them are skipped where they are absent."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.resolve()}")
    return folder.resolve()
