"""``cfmvit detect``: boxes of what the words name, drawn on the image."""

from __future__ import annotations

import json
from pathlib import Path

from cfmvit._io import atomic_write
from cfmvit._require import require
from cfmvit._terminal import printable
from cfmvit.detection.detector import Detector
from cfmvit.detection.image_input import read_image
from cfmvit.report import overlay
from cfmvit.training.device import choose_device


def detect(
    image: Path,
    labels: str | Path,
    checkpoint: Path | None = None,
    output: Path | None = None,
    threshold: float | None = None,
    as_json: bool = False,
    device: str = "auto",
) -> Path:
    """Find objects, print them and write an overlay.

    Args:
        labels: names, parted by commas, or by full stops as in "dog . cat ."; or a file with one a line.
        checkpoint: a detector's folder, or that of the run that made it; by default the small one that comes with the
            package.
        output: overlay to write; by default ``IMAGE.detected.png`` in the current folder.
        threshold: show all that score more; by default what stands out, see ``Detections.salient``.
        as_json: print the detections as JSON instead of a table.
        device: ``"cpu"``, ``"cuda[:N]"``, or by default a GPU where there is one.

    Returns:
        the overlay's path.

    Raises:
        ValueError: bad labels, an output that is the image itself or of a kind that can't be written; and all that
            ``Detector.predict`` raises.
    """
    path = output or Path(f"{image.stem}.detected.png")
    kind = _format(path, image)
    names = read_labels(labels)
    pixels = read_image(image)
    detector = Detector.from_pretrained(checkpoint).to(choose_device(device))
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"detect: threshold must be in [0, 1], got {threshold}")
    everything = detector.predict(pixels, names, threshold=0.0)
    found = everything.salient() if threshold is None else everything[everything.scores > threshold]
    base = set(detector.config.base_labels)
    drawn = overlay(pixels, found, {label for label in found.labels if label not in base})
    with atomic_write(path) as file:
        drawn.save(file, format=kind)
    if as_json:
        print(json.dumps(found.to_list(), indent=2))
        return path
    for item in found.to_list():
        corners = ", ".join(f"{value:.1f}" for value in item["box"].values())
        print(f"{item['score']:.3f}  {printable(item['label']):<24} ({corners})")
    hidden = (
        "" if len(found) or not len(everything) else _hidden(everything.scores[0].item(), len(everything))
    )
    print(f"{len(found)} found{hidden}; overlay: {printable(str(path))}")
    return path


def read_labels(labels: str | Path) -> list[str]:
    """Return the labels of a comma-separated text ("dog . cat ." will do, too), or of a file with one a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no text.
    """
    if isinstance(labels, Path):
        if not labels.is_file():
            raise FileNotFoundError(f"detect: no file of labels at {labels}")
        try:
            lines = labels.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"detect: {labels} must be a text in UTF-8: {error}") from error
        return [line for line in lines if line.strip()]
    separator = "," if "," in labels or " ." not in labels else " ."
    parts = labels.split(separator)
    # One at the end parts nothing.
    return parts[:-1] if len(parts) > 1 and not parts[-1].strip() else parts


def _hidden(best: float, count: int) -> str:
    return f" ({count} of lower scores are not shown, the best of {best:.3f})"


def _format(path: Path, image: Path) -> str:
    """Return Pillow's name of the format that a file's name asks for."""
    kinds = require("PIL.Image", extra="models").registered_extensions()
    kind = kinds.get(path.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        raise ValueError(f"detect: output must end in .png, .jpg, .webp, .bmp or .tif, got {path}")
    if path.exists() and image.exists() and path.samefile(image):
        raise ValueError(f"detect: output must be another file than the image, got {path}")
    return str(kind)
