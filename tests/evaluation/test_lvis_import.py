"""Loading the lvis package changes nothing else in the process, and needs no window library."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys
sys.modules["cv2"] = None  # an import of it fails, as without libGL
from cfmvit.evaluation.lvis import _import_lvis
package = _import_lvis()
assert package.eval.np.float is float and package.eval.np.zeros(2).shape == (2,)
assert not logging.getLogger().handlers
assert "lvis.vis" not in sys.modules
import numpy
assert not hasattr(numpy, "float")
"""


def test_import_without_opencv() -> None:
    pytest.importorskip("lvis")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
