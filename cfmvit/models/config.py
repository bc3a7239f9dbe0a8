"""What a CFM-ViT is made of, and the named sizes."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cfmvit.models.architecture import Architecture

# Far beyond any model, and small enough that a stranger's configuration fails before it fills the memory.
_MOST = {"depth": 256, "heads": 1024, "vocab_size": 10**7, "image_size": 2**12, "id": 10**7}
_MOST_OTHERWISE = 2**16


@dataclass
class ModelConfig(Architecture):
    """Architecture and pretraining options of a CFM-ViT.

    Options of models that were imported are inherited. Defaults are those of the paper for ViT-B/16 where it states them (sections 3 and 4.1); the text tower's size, the
    decoder's width and ``mask_ratio`` of the other sizes are this project's choices. Of feature reconstruction, the paper's target is
    the contrastive branch's ``tokens``; ``values`` are those that do not attend in its last block, which tell more of their own place.
    """

    name: str = "cfm_vit_b16"
    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    pos_embed: Literal["sincos", "learned", "none"] = "sincos"
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    vocab_size: int = 32000
    context_length: int = 64
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    decoder_width: int = 512
    decoder_depth: int = 2
    decoder_heads: int = 8
    mask_ratio: float = 0.75
    reconstruction: Literal["feature", "pixel", "none"] = "feature"
    reconstruction_target: Literal["tokens", "values"] = "tokens"
    contrastive_input: Literal["complementary", "full"] = "complementary"
    ped_prob: float = 0.5
    ped_granularity: Literal["sample", "batch"] = "sample"
    logit_scale_init: float = 1 / 0.07
    logit_scale_max: float = 100.0

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, rule: str) -> None:
            if not ok:
                raise ValueError(f"create_model: {name} must {rule}, got {getattr(self, name)!r}")

        for field in fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            if value is None and kind.endswith(" | None"):
                continue
            kind = kind.removesuffix(" | None")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            last = field.name.rpartition("_")[2]
            if kind == "int":
                whole = number and isinstance(value, int)
                least = 0 if last == "id" else 1
                check(field.name, whole and value >= least, f"be an integer of at least {least}")
                most = _MOST.get(field.name, _MOST.get(last, _MOST_OTHERWISE))
                check(field.name, value <= most, f"be at most {most}")
            elif kind == "float":
                check(field.name, number and math.isfinite(value), "be a finite number")
                check(field.name, last != "eps" or value > 0, "be positive")
            elif kind == "bool":
                check(field.name, isinstance(value, bool), "be true or false")
            elif kind.startswith("Literal"):
                choices = [part.strip(" \"'") for part in kind[8:-1].split(",")]
                check(field.name, value in choices, f"be one of {', '.join(choices)}")
        check(
            "image_size",
            self.image_size % self.patch_size == 0,
            f"be a multiple of patch_size {self.patch_size}",
        )
        sincos = self.pos_embed == "sincos"
        check("width", not sincos or self.width % 4 == 0, "be a multiple of 4 (sin-cos positions)")
        check("decoder_width", self.decoder_width % 4 == 0, "be a multiple of 4 (sin-cos positions)")
        for tower in ("", "text_", "decoder_"):
            heads = getattr(self, f"{tower}heads")
            check(
                f"{tower}width",
                getattr(self, f"{tower}width") % heads == 0,
                f"be a multiple of {tower}heads {heads}",
            )
        check("pooling", self.class_token or self.pooling != "class", "not be class without a class_token")
        mean = self.pooling == "mean"
        check("norm_after_pool", mean or not self.norm_after_pool, f"be false with pooling {self.pooling}")
        check("mask_ratio", 0 < self.mask_ratio < 1, "lie between 0 and 1, both excluded")
        check("ped_prob", 0 <= self.ped_prob <= 1, "lie between 0 and 1")
        check(
            "logit_scale_init",
            0 < self.logit_scale_init <= self.logit_scale_max,
            "be positive, at most the maximum",
        )

    @property
    def grid(self) -> int:
        """Tokens along one side of a pretraining image."""
        return self.image_size // self.patch_size

    @property
    def joint_width(self) -> int:
        """Width of the joint space."""
        return self.width if self.embed_dim is None else self.embed_dim

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``config.json``; of ``Architecture`` those alone that are not the default."""
        usual = asdict(Architecture())
        return {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}


_SIZES: dict[str, dict[str, Any]] = {
    "cfm_vit_b16": {},
    "cfm_vit_l16": {"width": 1024, "depth": 24, "heads": 16, "text_width": 768, "text_heads": 12},
    "cfm_vit_s16": {"width": 384, "heads": 6, "text_width": 384, "text_heads": 6, "decoder_width": 256},
    "cfm_vit_tiny": {
        "image_size": 64,
        "patch_size": 8,
        "width": 192,
        "depth": 6,
        "heads": 3,
        "context_length": 32,
        "text_width": 192,
        "text_depth": 2,
        "text_heads": 3,
        "decoder_width": 128,
        "decoder_heads": 4,
    },
}


def list_models() -> list[str]:
    """Return the names that ``create_model`` takes."""
    return list(_SIZES)


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """Return the configuration of a named size with ``overrides`` applied.

    Raises:
        ValueError: unknown name, unknown option, or a value out of range.
    """
    if name not in _SIZES:
        near = difflib.get_close_matches(name, _SIZES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"create_model: name must be one of {', '.join(_SIZES)}, got {name!r}{hint}")
    return _checked({"name": name, **_SIZES[name], **overrides})


def saved_config(values: dict[str, Any], source: object) -> ModelConfig:
    """Return the configuration that a file holds.

    Raises:
        ValueError: no name in it, an unknown option, or a value out of range.
    """
    name = values.get("name")
    if not isinstance(name, str):
        raise ValueError(f"from_pretrained: {source} must name its model, got {name!r}")
    return _checked({**_SIZES.get(name, {}), **values})


def _checked(values: dict[str, Any]) -> ModelConfig:
    inherited = {field.name for field in fields(Architecture)}
    known = sorted((field.name for field in fields(ModelConfig)), key=lambda name: name in inherited)
    for key in values:
        if key not in known:
            raise ValueError(f"create_model: unknown option {key!r}; valid options: {', '.join(known)}")
    return ModelConfig(**values)
