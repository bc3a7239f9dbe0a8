"""Models of other libraries, made CFM-ViTs: they embed as the originals do, and are saved, finetuned and pretrained as ours are."""

from cfmvit.models.importing.hf import from_hf
from cfmvit.models.importing.mae import from_mae
from cfmvit.models.importing.open_clip import from_open_clip
from cfmvit.models.importing.places import import_model
from cfmvit.models.importing.timm import from_timm

__all__ = ["from_hf", "from_mae", "from_open_clip", "from_timm", "import_model"]
