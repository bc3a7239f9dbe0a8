"""A detector small enough to train within a test, and a batch for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from cfmvit.detection import DetectorConfig, HeadConfig, ProposalConfig, PyramidConfig, ScoreConfig
from cfmvit.models import CFMViT, Tokenizer, create_model

SIZE = 96
LABELS = ("red square", "green square", "blue square")


def small_model(seed: int = 0) -> CFMViT:
    """Return a CFM-ViT of two blocks with fresh weights."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train([*LABELS, "background", "a photo of a thing"], 300)
    return create_model(
        "cfm_vit_tiny", tokenizer=tokenizer, image_size=48, width=64, depth=2, heads=2, text_width=64, text_depth=1,
        text_heads=2, decoder_width=32, decoder_heads=2, decoder_depth=1,
    )  # fmt: skip


def small_config(**overrides: object) -> DetectorConfig:
    """Return a configuration to match: 96 px, patch 8, strides 4, 8 and 16."""
    config = DetectorConfig(
        image_size=SIZE,
        window=6,
        pyramid=PyramidConfig(levels=(3, 4, 5), channels=32),
        proposals=ProposalConfig(samples=64, center_foreground=0.5, box_match=0.4, pre_nms=100, post_nms=60),
        heads=HeadConfig(
            samples=32,
            convs=1,
            channels=32,
            fc=128,
            mask_samples=8,
            mask_size=7,
            mask_convs=1,
            mask_channels=16,
        ),
        scores=ScoreConfig(max_detections=20),
        templates=("a photo of a {}",),
    )
    return replace(config, **overrides)


def squares_batch() -> dict[str, object]:
    """Return two images of coloured squares on noise, with boxes, labels and masks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(90, 140, (2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    boxes = [
        torch.tensor([[8.0, 8.0, 40.0, 40.0], [56.0, 20.0, 84.0, 52.0]]),
        torch.tensor([[20.0, 28.0, 82.0, 90.0]]),
    ]
    labels = [torch.tensor([0, 1]), torch.tensor([2])]
    masks = []
    for image, box, label in zip(images, boxes, labels):
        mask = torch.zeros(len(box), SIZE, SIZE, dtype=torch.uint8)
        for row, ((x0, y0, x1, y1), color) in enumerate(zip(box.long().tolist(), label.tolist())):
            mask[row, y0:y1, x0:x1] = 1
            image[:, y0:y1, x0:x1] = 20
            image[color, y0:y1, x0:x1] = 230
        masks.append(mask)
    return {
        "images": images,
        "boxes": boxes,
        "labels": labels,
        "masks": masks,
        "valid_size": [(SIZE, SIZE)] * 2,
        "keys": ["first", "second"],
    }


def generators(seed: int, count: int = 2) -> list[torch.Generator]:
    """Return a generator for each image of a batch."""
    return [torch.Generator().manual_seed(1000 * seed + number) for number in range(count)]
