"""What a detector is made of. Defaults are those of the paper's ViT-B/16 at 1024 px (section 3.3 and its sources)."""

from __future__ import annotations

from dataclasses import dataclass, field

from cfmvit.training.field_ranges import check, fraction, not_negative, positive


@dataclass
class PyramidConfig:
    """Simple feature pyramid: level ``l`` has stride ``patch_size * 2 ** (l - 4)``, so P4 is the ViT's own map."""

    levels: tuple[int, ...] = (2, 3, 4, 5)
    channels: int = 256

    def __post_init__(self) -> None:
        levels = list(self.levels)
        consecutive = bool(levels) and levels == list(range(levels[0], levels[0] + len(levels)))
        check(
            "pyramid.levels",
            self.levels,
            consecutive and levels[0] >= 2 and levels[-1] <= 5,
            "be consecutive levels from 2 to 5",
        )
        positive("pyramid.", self, "channels")


@dataclass
class ProposalConfig:
    """OLN-RPN: one square anchor a place, centerness instead of objectness.

    Attributes:
        anchor_scale: side of an anchor in strides.
        center_match, center_unmatched: IoU from which a place learns its centerness, and below which it learns zero.
        center_foreground: share of matched places among the sampled ones; short runs need more background.
        box_match: IoU from which a place learns its box.
        samples: places an image for the centerness.
        pre_nms: proposals a level before NMS; ``post_nms`` in all after it.
        nms_train, nms_test: IoU of the NMS; 1 switches it off.
    """

    anchor_scale: float = 8.0
    convs: int = 1
    center_match: float = 0.3
    center_unmatched: float = 0.1
    center_foreground: float = 255 / 256
    box_match: float = 0.7
    samples: int = 256
    box_loss_weight: float = 8.0
    pre_nms: int = 2000
    post_nms: int = 1000
    nms_train: float = 0.7
    nms_test: float = 1.0

    def __post_init__(self) -> None:
        positive(
            "proposals.", self, "anchor_scale", "convs", "box_loss_weight", "samples", "pre_nms", "post_nms"
        )
        fraction("proposals.", self, "center_match", "center_unmatched", "center_foreground", "box_match")
        fraction("proposals.", self, "nms_train", "nms_test")


@dataclass
class HeadConfig:
    """Box and mask heads on sampled regions."""

    samples: int = 512
    foreground: float = 0.25
    match: float = 0.5
    box_size: int = 7
    convs: int = 4
    channels: int = 256
    fc: int = 1024
    mask: bool = True
    mask_samples: int = 128
    mask_size: int = 14
    mask_convs: int = 4
    mask_channels: int = 256
    sampling_ratio: int = 2
    background_weight: float = 0.9

    def __post_init__(self) -> None:
        positive("heads.", self, "samples", "box_size", "channels", "fc", "mask_samples", "mask_size")
        positive("heads.", self, "mask_channels", "background_weight")
        not_negative("heads.", self, "convs", "mask_convs", "sampling_ratio")
        fraction("heads.", self, "foreground", "match")


@dataclass
class ScoreConfig:
    """Open-vocabulary scores: ``w`` of the ensemble is the exponent of the frozen backbone's score."""

    vlm: bool = True
    vlm_grid: int = 14
    vlm_temperature: float = 0.01
    base_weight: float = 0.35
    novel_weight: float = 0.65
    renormalize: bool = True
    center_power: float = 3.0
    nms: float = 0.5
    threshold: float = 0.0
    max_detections: int = 300
    candidates: int = 10000

    def __post_init__(self) -> None:
        positive("scores.", self, "vlm_grid", "vlm_temperature", "max_detections", "candidates")
        not_negative("scores.", self, "center_power")
        fraction("scores.", self, "base_weight", "novel_weight", "nms", "threshold")


@dataclass
class DetectorConfig:
    """A detector around a pretrained CFM-ViT.

    Attributes:
        image_size: side of the square that images are resized and padded to.
        window: tokens along a side of an attention window; 0 attends globally everywhere.
        global_blocks: blocks, counted from 0, that attend globally; None spreads four evenly (B: 2, 5, 8, 11).
        freeze_backbone: train the pyramid and the heads only; the detector then has one image tower instead of two.
        templates: prompts with one ``{}``; ``"clip"`` stands for CLIP's 80.
        base_labels: the categories it was finetuned on (written by ``finetune``).
    """

    image_size: int = 1024
    window: int = 16
    global_blocks: tuple[int, ...] | None = None
    freeze_backbone: bool = False
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    templates: tuple[str, ...] = ("clip",)
    base_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        positive("detector.", self, "image_size")
        not_negative("detector.", self, "window")


def tiny_config(**overrides: object) -> DetectorConfig:
    """Return a detector for small images that trains in well under a second a step on two CPU cores."""
    settings: dict[str, object] = {
        "image_size": 160,
        "window": 10,
        "pyramid": PyramidConfig(levels=(3, 4, 5), channels=64),
        # Anchors of 32 px and more: of twice that size they overlap small objects too little, and short runs may learn no boxes.
        "proposals": ProposalConfig(
            anchor_scale=4.0, samples=64, center_foreground=0.5, box_match=0.4, pre_nms=200, post_nms=200
        ),
        "heads": HeadConfig(
            samples=32,
            convs=1,
            channels=64,
            fc=256,
            mask_samples=8,
            mask_size=7,
            mask_convs=1,
            mask_channels=32,
        ),
        # Short pretraining ends with a temperature near 0.05; the paper's 0.01 would harden its unsure scores.
        "scores": ScoreConfig(vlm_temperature=0.05, max_detections=100),
        **overrides,
    }
    return DetectorConfig(**settings)  # type: ignore[arg-type]
