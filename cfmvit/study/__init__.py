"""``cfmvit study``: one question, a grid of settings with several seeds each, and a table with its uncertainty."""

from cfmvit.study.config import Cell, Settings, Study, load_study, study_cells
from cfmvit.study.run import study

__all__ = ["Cell", "Settings", "Study", "load_study", "study", "study_cells"]
