"""What each preset makes and trains. Times are for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cfmvit.data.scenes import ScenesConfig, SplitConfig
from cfmvit.detection import FinetuneConfig, FinetuneOptim, tiny_config
from cfmvit.pretrain import PretrainConfig
from cfmvit.pretrain.config import PROTOCOLS
from cfmvit.training import LoopConfig, load_config


@dataclass(frozen=True)
class Preset:
    """Data, pretraining and finetuning of one demo."""

    name: str
    scenes: ScenesConfig
    pretrain: PretrainConfig
    finetune: FinetuneConfig


def _scenes(pretrain: int, train: int, val: int, words: tuple[int, int, int]) -> ScenesConfig:
    """Categories of so many colours, textures and shapes; pretraining images as large as the detector's attention windows."""
    colours, textures, shapes = words
    return ScenesConfig(
        colours=colours,
        textures=textures,
        shapes=shapes,
        pretrain=SplitConfig(images=pretrain, size=64, objects=(1, 2), scale=(26, 52)),
        train=SplitConfig(images=train, size=128, objects=(2, 4), scale=(26, 52), tail=0.8),
        val=SplitConfig(images=val, size=128, objects=(2, 4), scale=(26, 52)),
    )


def _pretrain(steps: int, *, batch_size: int = 64) -> PretrainConfig:
    """Return the protocol of the embedded data, for other numbers of steps and images."""
    config = load_config(PretrainConfig, PROTOCOLS / "scenes.toml")
    return replace(
        config,
        batch_size=batch_size,
        optim=replace(config.optim, warmup=min(config.optim.warmup, steps // 10)),
        loop=replace(config.loop, steps=steps),
    )


def _finetune(steps: int) -> FinetuneConfig:
    detector = tiny_config(image_size=128, window=8, templates=("a photo of a {}",))
    # Base names have all the words of novel ones, so the detector does not take novel objects for something else: the paper's
    # larger exponent would favour novel labels (docs/results.md).
    detector.scores.novel_weight = detector.scores.base_weight
    return FinetuneConfig(
        batch_size=8,
        detector=detector,
        optim=FinetuneOptim(
            name="adamw", lr=2e-3, backbone_lr_ratio=0.2, warmup=min(30, steps // 10), milestones=(0.7, 0.9)
        ),
        loop=LoopConfig(steps=steps, precision="auto", log_every=5, save_every=500),
    )


_ALL = (
    Preset("quick", _scenes(2000, 300, 40, (8, 5, 3)), _pretrain(230), _finetune(200)),
    Preset("default", _scenes(8000, 600, 100, (8, 5, 3)), _pretrain(750), _finetune(300)),
    Preset("full", _scenes(40_000, 3000, 300, (8, 5, 8)), _pretrain(4500, batch_size=128), _finetune(2000)),
)
PRESETS = {preset.name: preset for preset in _ALL}
