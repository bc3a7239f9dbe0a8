"""Models on the Hugging Face hub: ``hf:org/name`` stands for the folder that ``huggingface_hub`` keeps of it."""

from __future__ import annotations

import os
from pathlib import Path

from cfmvit._require import require

PREFIX = "hf:"
_PLAIN = ["*.json", "*.safetensors", "*.txt", "*.model"]
_PICKLES = ["*.bin", "*.pt", "*.pth"]


def local_folder(place: str | os.PathLike[str]) -> Path:
    """Return the folder or file that ``place`` names; of ``hf:org/name`` or ``hf:org/name@revision`` the one in the hub's cache.

    Files that the cache lacks are fetched, pickles only where there is no safetensors. ``HF_HOME``, ``HF_HUB_CACHE``,
    ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` mean what they always do.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: the hub has no such model, or can't be asked and the cache has none either.
    """
    name = os.fspath(place)
    if not name.startswith(PREFIX):
        return Path(name)
    name = name.removeprefix(PREFIX)
    if Path(name).exists():
        return Path(name)
    hub = require("huggingface_hub", extra="hub")
    repository, _, revision = name.partition("@")
    options = {"revision": revision or None, "ignore_patterns": ["*/*"]}
    try:
        folder = Path(hub.snapshot_download(repository, allow_patterns=_PLAIN, **options))
        if not any(folder.glob("*.safetensors")):
            folder = Path(hub.snapshot_download(repository, allow_patterns=_PLAIN + _PICKLES, **options))
    except Exception as error:  # the hub's own types, and those of its transport
        raise FileNotFoundError(
            f"hub: {PREFIX}{name} is neither a folder here, nor in the hub's cache, nor could it be fetched "
            f"({type(error).__name__}: {error})"
        ) from error
    return folder
