"""Where a picture resembles a label, whatever the boxes say: maps of the frozen tower."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cfmvit._io import atomic_write
from cfmvit.detection.image_input import prepare, read_image
from cfmvit.detection.places import OVERLAY
from cfmvit.detection.vocabulary import Vocabulary, Words
from cfmvit.evaluation.pointing import value_tokens
from cfmvit.report import similarity_map
from cfmvit.report.images import PNG

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_MAPS = 32  # labels that are drawn of a picture


@torch.no_grad()
def similarity_maps(detector: Any, image: Any, labels: Words) -> dict[str, Picture]:
    """Draw, for each label, the cosine of the frozen tower's tokens with the label's text over the picture.

    The picture is encoded whole and each token keeps its own value, see ``value_tokens``. The colours of a map span its own
    cosines, which its bar names: texts lie at different distances from all pictures.

    Args:
        detector: whose frozen model (CFM-ViT section 3.3) is asked, at the detector's image size.
        image: as ``Detector.predict`` takes it.
        labels: what to look for, or a ``Vocabulary`` made of it.

    Returns:
        a PIL picture for each label.

    Raises:
        TypeError, ValueError, FileNotFoundError: as ``Detector.predict``.
    """
    text: Vocabulary = detector.vocabulary(labels)
    patch = detector.model.visual.patch_size
    prepared = prepare(read_image(image), detector.config.image_size)
    rows, columns = (-(-side // patch) for side in prepared.valid_size)
    pixels = prepared.pixels[
        :, : rows * patch, : columns * patch
    ]  # without the padding, but for a part of a token
    tokens = value_tokens(detector.model, pixels[None].to(detector.device))[0].float().cpu()
    return {
        label: similarity_map(pixels, tokens, row, (rows, columns))
        for label, row in zip(text.labels, text.embeddings[1:].cpu())
    }


def write_maps(detector: Any, image: Any, labels: Vocabulary, overlay: Path) -> list[Path]:
    """Write the maps of a picture as PNG beside its overlay, ``photo.1-red-cup.detected.png``, and return where they are."""
    stem = overlay.name.removesuffix(OVERLAY) if overlay.name.endswith(OVERLAY) else overlay.stem
    paths = []
    for number, (label, drawn) in enumerate(similarity_maps(detector, image, labels).items(), 1):
        word = re.sub(r"\W+", "-", label)[:40]
        paths.append(overlay.with_name(f"{stem}.{number}-{word}{OVERLAY}"))
        with atomic_write(paths[-1]) as file:
            drawn.save(file, format="PNG", **PNG)
    return paths
