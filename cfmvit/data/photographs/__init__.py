"""Photographs pasted into scenes: small, object-centred pictures to pretrain on, larger scenes of several to detect in."""

from cfmvit.data.photographs.config import PhotographsConfig
from cfmvit.data.photographs.make import make_photographs

__all__ = ["PhotographsConfig", "make_photographs"]
