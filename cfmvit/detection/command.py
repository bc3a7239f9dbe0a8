"""``cfmvit detect``: boxes of what the words name, drawn on the image."""

from __future__ import annotations

import json
from pathlib import Path

from cfmvit._io import atomic_write
from cfmvit.detection.detector import Detector
from cfmvit.detection.image_input import read_image
from cfmvit.report import overlay
from cfmvit.training.device import choose_device


def detect(
    image: Path,
    labels: str,
    checkpoint: Path | None = None,
    output: Path | None = None,
    threshold: float | None = None,
    as_json: bool = False,
    device: str = "auto",
) -> Path:
    """Find objects, print them and write an overlay.

    Args:
        labels: comma-separated names.
        checkpoint: a detector's folder; by default the small one that comes with the package.
        output: overlay to write; by default ``IMAGE.detected.png`` in the current folder.
        threshold: show all that score more; by default what stands out, see ``Detections.salient``.
        as_json: print the detections as JSON instead of a table.
        device: ``"cpu"``, ``"cuda[:N]"``, or by default a GPU where there is one.

    Returns:
        the overlay's path.
    """
    pixels = read_image(image)
    detector = Detector.from_pretrained(checkpoint).to(choose_device(device))
    found = detector.predict(pixels, labels.split(","), threshold=threshold)
    if threshold is None:
        found = found.salient()
    base = set(detector.config.base_labels)
    path = output or Path(f"{image.stem}.detected.png")
    drawn = overlay(pixels, found, {label for label in found.labels if label not in base})
    with atomic_write(path) as file:
        drawn.save(file, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    if as_json:
        print(json.dumps(found.to_list(), indent=2))
    else:
        for item in found.to_list():
            corners = ", ".join(f"{value:.1f}" for value in item["box"].values())
            print(f"{item['score']:.3f}  {item['label']:<24} ({corners})")
        print(f"{len(found)} found; overlay: {path}")
    return path
