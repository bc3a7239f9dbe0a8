"""``cfmvit import``: a folder with a CFM-ViT made of another library's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfmvit.models.importing.places import import_model


def import_to(place: str, output: Path, **options: Any) -> None:
    """Import a model, save it and say what it is.

    Args:
        place: ``KIND:PLACE``, see ``import_model``.
        output: the folder to write.
        options: what ``import_model`` takes; None stands for its default, ``mean`` and ``std`` are numbers parted by commas.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in {"mean", "std"} & given.keys():
        given[name] = _numbers(name, given[name])
    model = import_model(place, **given)
    model.save_pretrained(output)
    config = model.config
    count = sum(weight.numel() for weight in model.parameters())
    print(
        f"{config.name}: {config.image_size} px, patches of {config.patch_size}, {config.depth} blocks of {config.width}, "
        f"joint space of {config.joint_width}; {count:,} weights"
    )
    if not config.text_tower:
        print(
            "there is no text tower: pretrain from it (cfmvit pretrain model=...) before a detector is finetuned"
        )
    elif model.tokenizer is None:
        print("there is no tokenizer, so it takes ids alone: give --tokenizer to name things by words")
    print(f"the model is in {output}")


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"import: --{name} must be numbers parted by commas, got {text!r}") from error
