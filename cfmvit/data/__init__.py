"""Data: embedded scenes, COCO, LVIS, WebDataset shards; a loader whose batches are addressed by number.

A place is named by ``coco:DIR``, ``lvis:DIR``, ``shards:GLOB``, ``annotations.json@image_folder`` or, for captions,
``pairs.csv`` or ``pairs.tsv``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfmvit._lazy import hand_on

__all__ = [
    "COCO_BASE",
    "COCO_NOVEL",
    "CaptionDataset",
    "Category",
    "CorruptSample",
    "DetectionDataset",
    "SeededLoader",
    "collate_captions",
    "collate_detection",
    "open_captions",
    "open_detection",
]

if TYPE_CHECKING:
    from cfmvit.data.captions import CaptionDataset, open_captions
    from cfmvit.data.categories import Category
    from cfmvit.data.collate import collate_captions, collate_detection
    from cfmvit.data.detection import DetectionDataset, open_detection
    from cfmvit.data.images import CorruptSample
    from cfmvit.data.loader import SeededLoader
    from cfmvit.data.splits import COCO_BASE, COCO_NOVEL
else:
    # So that the rules of categories and masks need no torch.
    __getattr__, __dir__ = hand_on(
        __name__,
        {
            "cfmvit.data.captions": ("CaptionDataset", "open_captions"),
            "cfmvit.data.categories": ("Category",),
            "cfmvit.data.collate": ("collate_captions", "collate_detection"),
            "cfmvit.data.detection": ("DetectionDataset", "open_detection"),
            "cfmvit.data.images": ("CorruptSample",),
            "cfmvit.data.loader": ("SeededLoader",),
            "cfmvit.data.splits": ("COCO_BASE", "COCO_NOVEL"),
        },
    )
