"""Detectors as one file for other runtimes: ONNX, and programs of ``torch.export``."""

from cfmvit.detection.exporting.files import Format, check_output, export_detector

__all__ = ["Format", "check_output", "export_detector"]
