"""Python that is started in a checkout finds this folder before the package that ``pip install .`` made of it."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path


def prefer_installed(path: list[str]) -> None:
    """Where the folders of `path` lack the native core and an installed cfmvit has it, make `path` the installed one's."""
    if find_spec("cfmvit._C"):
        return
    here = {Path(folder).resolve() for folder in path}
    others = [entry for entry in sys.path if Path(entry, "cfmvit").resolve() not in here]
    installed = PathFinder.find_spec("cfmvit", others)
    folders = installed.submodule_search_locations if installed and installed.origin else None
    if folders and PathFinder.find_spec("cfmvit._C", folders):
        path[:] = folders
