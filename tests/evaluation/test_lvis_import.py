"""Loading the lvis package changes nothing else in the process, and needs no window library."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys
{before}
from cfmvit.evaluation.lvis import _import_lvis
package = _import_lvis()
assert package.eval.np.float is float and package.eval.np.zeros(2).shape == (2,)
assert not logging.getLogger().handlers
import numpy
assert not hasattr(numpy, "float")
{after}
"""
NO_OPENCV = "sys.modules['cv2'] = None  # an import of it fails, as without libGL"
IMPORTABLE = "assert 'lvis.vis' not in sys.modules"


@pytest.mark.parametrize(
    ("before", "after"), [("", ""), (NO_OPENCV, IMPORTABLE)], ids=["plain", "without_opencv"]
)
def test_import(before: str, after: str) -> None:
    pytest.importorskip("lvis")
    script = SCRIPT.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
