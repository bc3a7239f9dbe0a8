"""Embedded data: scenes of coloured, textured shapes, on disk in the layout and the formats of LVIS and COCO."""

from cfmvit.data.scenes.config import ScenesConfig, SplitConfig
from cfmvit.data.scenes.make import make_scenes
from cfmvit.data.scenes.vocabulary import Composition, compositions

__all__ = ["Composition", "ScenesConfig", "SplitConfig", "compositions", "make_scenes"]
