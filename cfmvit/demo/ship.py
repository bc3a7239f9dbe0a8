"""Turn a demo's detector into the small one that comes with the package.

``python -m cfmvit.demo.ship runs/demo`` writes ``cfmvit/checkpoints/scenes`` of this checkout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from cfmvit.detection import Detector
from cfmvit.models.checkpoint import CONFIG, write_pretrained


def ship(demo: Path, target: Path) -> None:
    """Write the pretrained detector of the demo in ``demo`` with half-precision weights.

    They are widened when they are loaded; the file stays under 10 MB.
    """
    folder = demo / "finetune-pretrained" / "detector"
    detector = Detector.from_pretrained(folder)
    weights = {name: x.half() if x.dtype == torch.float32 else x for name, x in detector.state_dict().items()}
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    write_pretrained(target, weights, config, detector.model.tokenizer)


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path("cfmvit/checkpoints/scenes"))
