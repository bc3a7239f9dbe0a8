"""``cfmvit detect``: boxes of what the words name, drawn on the image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cfmvit._io import atomic_write
from cfmvit._require import require
from cfmvit._terminal import printable
from cfmvit.detection.detector import Detector, Precision
from cfmvit.detection.explanation import MOST_MAPS, write_maps
from cfmvit.detection.folder import RESULTS, detect_folder
from cfmvit.detection.image_input import read_image
from cfmvit.detection.places import find_images
from cfmvit.detection.result import PARTS, Detections
from cfmvit.detection.vocabulary import Vocabulary, clean_labels
from cfmvit.report import overlay
from cfmvit.report.images import PNG
from cfmvit.training.device import choose_device


def detect(
    images: Path | Sequence[str | Path],
    labels: str | Path | None,
    checkpoint: Path | None = None,
    output: Path | None = None,
    threshold: float | None = None,
    as_json: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    vocabulary: Path | None = None,
    explain: bool = False,
) -> Path:
    """Find objects, print them and write overlays.

    Args:
        images: a picture; or several files, folders and patterns, for which see ``detect_folder``.
        labels: names, parted by commas, or by full stops as in "dog . cat ."; or a file with one a line.
        checkpoint: a detector's folder, or that of the run that made it; by default the small one that comes with the
            package.
        output: overlay to write, by default ``IMAGE.detected.png`` in the current folder; for several pictures a folder, by
            default ``runs/detect``.
        threshold: show all that score more; by default what stands out, see ``Detections.salient``.
        as_json: print the detections as JSON instead of a table; of one picture.
        device: ``"cpu"``, ``"cuda[:N]"``, or by default a GPU where there is one.
        precision: as ``Detector.encode`` takes it.
        vocabulary: file that keeps the labels' embeddings. Where there is one, it is read, and ``labels`` may be None; else it is
            written.
        explain: give the detector's and the frozen tower's probability and the centerness of each score, and write a map of the
            frozen tower's similarity to each label, see ``write_maps``.

    Returns:
        the overlay's path, or the folder.

    Raises:
        ValueError: bad labels, an output that is the image itself or of a kind that can't be written; and all that
            ``Detector.predict`` raises.
    """
    places = [images] if isinstance(images, (str, Path)) else list(images)
    files = find_images(places)
    alone = len(places) == 1 and files == [Path(places[0])]
    if not alone and as_json:
        raise ValueError(
            f"detect: JSON is printed of one picture, got {len(files)}; results.json has those of all"
        )
    path = output or (Path(f"{files[0].stem}.detected.png") if alone else Path("runs/detect"))
    kind = _format(path, files[0]) if alone else ""
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"detect: threshold must be in [0, 1], got {threshold}")
    names = None if labels is None else read_labels(labels)
    pixels = read_image(files[0]) if alone else None
    detector = Detector.from_pretrained(checkpoint).to(choose_device(device))
    text = _vocabulary(detector, names, vocabulary)
    if explain and len(text.labels) > MOST_MAPS:
        raise ValueError(
            f"detect: explained labels, each of which gets a map, must be at most {MOST_MAPS}, got {len(text.labels)}"
        )

    def choose(found: Detections) -> Detections:
        return found.salient() if threshold is None else found[found.scores > threshold]

    if pixels is None:
        result = detect_folder(detector, files, text, path, choose, explain=explain, precision=precision)
        skipped = f", {result.skipped} can't be read" if result.skipped else ""
        hidden = f" ({result.hidden} of lower scores are not shown)" if result.hidden else ""
        print(
            f"{len(result.results)} found{hidden} in {len(result.images)} pictures{skipped}; overlays and {RESULTS}: "
            f"{printable(str(path))}"
        )
        return path
    seen = detector.encode([pixels], precision=precision)
    (everything,) = detector.predict(seen, text, threshold=0.0, masks=False, explain=explain)
    found = choose(everything)
    detector.add_masks(seen, [found])
    base = set(detector.config.base_labels)
    drawn = overlay(pixels, found, {label for label in found.labels if label not in base})
    with atomic_write(path) as file:
        drawn.save(file, format=kind, **PNG)
    maps = write_maps(detector, pixels, text, path) if explain else []
    if as_json:
        print(json.dumps(found.to_list(), indent=2))
        return path
    for item in found.to_list():
        corners = ", ".join(f"{value:.1f}" for value in item["box"].values())
        parts = [f"{name} {item[name]:.3f}" for name in PARTS if item.get(name) is not None]
        why = f"  {', '.join(parts)}" if parts else ""
        print(f"{item['score']:.3f}  {printable(item['label']):<24} ({corners}){why}")
    hidden = (
        "" if len(found) or not len(everything) else _hidden(everything.scores[0].item(), len(everything))
    )
    print(f"{len(found)} found{hidden}; overlay: {printable(str(path))}")
    for drawn_to in maps:
        print(f"map: {printable(str(drawn_to))}")
    return path


def _vocabulary(detector: Detector, names: list[str] | None, file: Path | None) -> Vocabulary:
    if file is None or not file.exists():
        if names is None:
            raise ValueError(
                f"detect: no vocabulary at {file}; labels must be given, for it to be written"
                if file
                else "detect: labels must be given, or a vocabulary"
            )
        text = detector.vocabulary(names)
        if file is not None:
            text.save(file)
        return text
    text = Vocabulary.load(file)
    if text.source and text.source != detector.text_source():
        raise ValueError(
            f"vocabulary: {file} was made by another text tower, or with other prompts; remove it to have it made again"
        )
    if names is not None and clean_labels(names) != text.labels:
        raise ValueError(
            f"vocabulary: {file} has {len(text.labels)} other labels; remove it to have it made again"
        )
    return text


def read_labels(labels: str | Path) -> list[str]:
    """Return the labels of a comma-separated text ("dog . cat ." will do, too), or of a file with one a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no text, or has no label.
    """
    if isinstance(labels, Path):
        if not labels.is_file():
            raise FileNotFoundError(f"labels: no file at {labels}")
        try:
            lines = labels.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"labels: {labels} must be a text in UTF-8: {error}") from error
        found = [line for line in lines if line.strip()]
        if not found:
            raise ValueError(f"labels: {labels} must have a label at least, got none")
        return found
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
