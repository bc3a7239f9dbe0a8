"""The site is made of the pages and the docstrings, without a warning."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cfmvit import ops

from ..processes import ROOT, run


def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path)
    page = (tmp_path / "ops" / "index.html").read_text(encoding="utf-8")
    assert {name.rpartition(".")[2] for name in re.findall('id="cfmvit[.]ops[.]([^"]+)"', page)} >= {
        *ops.__all__
    }
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= {page.parent.name for page in tmp_path.glob("*/index.html")}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]
