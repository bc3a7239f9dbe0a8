"""Batches from lists of samples."""

from __future__ import annotations

from typing import Any

import torch


def collate_captions(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ``images`` uint8 (B, 3, S, S), and ``texts`` and ``keys``, lists of str."""
    return {
        "images": torch.stack([sample["image"] for sample in samples]),
        "texts": [sample["text"] for sample in samples],
        "keys": [sample["key"] for sample in samples],
    }


def collate_detection(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ``images`` uint8 (B, 3, S, S); everything else as lists with one entry an image, ``keys`` among them."""
    batch: dict[str, Any] = {"images": torch.stack([sample["image"] for sample in samples])}
    for name in (
        "boxes",
        "labels",
        "masks",
        "has_mask",
        "image_id",
        "scale",
        "original_size",
        "valid_size",
        "remarks",
    ):
        batch[name] = [sample[name] for sample in samples]
    batch["keys"] = [sample["key"] for sample in samples]
    return batch
