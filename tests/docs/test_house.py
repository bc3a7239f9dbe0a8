"""The drawing of the house in CONTRIBUTING.md is the house."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"__init__.py", "functional.py", "checks.py", "native.py", "reference.py"}


def drawn() -> set[Path]:
    """Return the folders of the drawing; ``<family>`` stands for every one beside those that are named."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## The house")[2]
    folders: list[str] = []
    parent = ""
    for line in re.search("```\n(.*?)```", text, re.DOTALL)[1].splitlines():
        indented = line.startswith(" ")
        names = re.split("  +", line.strip())[0].split()
        assert all(name.endswith("/") for name in names), f"no folder in {line!r}"
        folders += [f"{parent * indented}{name}" for name in names]
        parent = parent if indented else names[0]
    families = {
        name.replace("<family>", family) for name in folders if "<family>" in name for family in FAMILIES
    }
    return {Path(name) for name in {name for name in folders if "<family>" not in name} | families}


FAMILIES = sorted(
    path.parent.name
    for path in (ROOT / "cfmvit" / "ops").glob("*/__init__.py")
    if path.parent.name != "shared"
)


def kept() -> set[Path]:
    """Return the top-level folders and cfmvit's packages, as git knows them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [Path(name) for name in listed.stdout.splitlines()]
    packages = {path.parent for path in files if path.name == "__init__.py" and path.parts[0] == "cfmvit"}
    return {Path(path.parts[0]) for path in files if len(path.parts) > 1} | packages


def test_every_drawn_folder_is_there() -> None:
    assert not [folder for folder in drawn() if not (ROOT / folder).is_dir()]


def test_every_folder_is_drawn() -> None:
    assert not kept() - drawn() - {Path("cfmvit/ops")}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_same_parts(family: str) -> None:
    assert {path.name for path in (ROOT / "cfmvit" / "ops" / family).glob("*.py")} >= PARTS
