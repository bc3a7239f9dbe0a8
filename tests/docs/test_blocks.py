"""Every block of Python and shell in the README and the docs does what it says.

Python is run, in a folder with a few made scenes. A command of ours is run where what it reads is in that folder and it is short;
for the others see `shell`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cfmvit
from cfmvit.cli import main
from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes

from .shell import ROOT, check, commands

pytest_codeblocks = pytest.importorskip("pytest_codeblocks")
# The weights first: other pages start from what that one makes.
DOCS = sorted((ROOT / "docs").glob("*.md"), key=lambda page: (page.name != "weights.md", page.name))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
PEERS = ("torchvision", "open_clip", "timm", "transformers", "onnxruntime")


def blocks(*languages: str) -> list[Any]:
    found = [(page, block) for page in PAGES for block in pytest_codeblocks.extract_from_file(page)]
    return [
        pytest.param(page, block, id=f"{page.relative_to(ROOT)}:{block.lineno}")
        for page, block in found
        if block.syntax in languages
    ]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as a demo leaves it, with a photo beside it."""
    folder = tmp_path_factory.mktemp("docs")
    nothing, few = SplitConfig(images=0, size=64), SplitConfig(images=4, size=128, objects=(2, 4))
    make_scenes(folder / "runs" / "demo" / "data", ScenesConfig(pretrain=nothing, train=nothing, val=few))
    (folder / "photo.jpg").symlink_to("runs/demo/data/val/00000001.jpg")
    shipped = Path(cfmvit.__file__).parent / "checkpoints" / "scenes"
    for run in ("finetune", "demo/finetune-pretrained"):
        detector = folder / "runs" / run / "detector"
        detector.parent.mkdir(parents=True, exist_ok=True)
        detector.symlink_to(shipped)
    return folder


@pytest.fixture
def folder(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(scenes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield scenes


def readers_model() -> dict[str, Any]:
    """Return what stands for the reader's torchvision model, images and targets."""
    detection = pytest.importorskip("torchvision").models.detection
    backbone = torch.nn.Conv2d(3, 8, 3, stride=8, padding=1)
    backbone.out_channels = 8
    anchors = detection.anchor_utils.AnchorGenerator(((16,),), ((1.0,),))
    model = detection.MaskRCNN(backbone, 2, rpn_anchor_generator=anchors, min_size=64, max_size=64)
    target = {
        "boxes": torch.tensor([[8.0, 8, 40, 40]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    }
    return {"mask_rcnn": model, "images": [torch.rand(3, 64, 64)], "targets": [target]}


@pytest.mark.parametrize(("page", "block"), blocks("python", "bash"))
def test_block(page: Path, block: Any, folder: Path) -> None:
    """In the order of the page: what one block leaves, the next ones read."""
    if block.syntax == "bash":
        ran = 0
        for words in commands(block.code):
            arguments = check(words, folder)
            if arguments is not None:
                assert main(arguments) == 0, " ".join(words)
                ran += 1
        # That page is run as it stands, but for what stands in it for a large model.
        assert ran or page.name != "detect.md" or "runs/clip-b16" in block.code
        return
    for peer in PEERS:
        if re.search(rf"^(import|from) {peer}\b", block.code, re.MULTILINE):
            pytest.importorskip(peer)
    given: dict[str, Any] = {"__name__": "__main__"}
    if "mask_rcnn(images, targets)" in block.code:
        given |= readers_model()
    exec(compile("\n" * block.lineno + block.code, str(page), "exec"), given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text(page: Path, folder: Path) -> None:
    for command in re.findall(r"`(cfmvit \w[^`]*)`", page.read_text()):
        for words in commands(command):
            check(words, folder)


def test_what_is_no_text_is_run() -> None:
    kinds = {block.syntax for page in PAGES for block in pytest_codeblocks.extract_from_file(page)}
    assert kinds <= {"", "text", "python", "bash"}
