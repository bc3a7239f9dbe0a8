"""Steps side by side are steps of the same size, and the page says what was measured and planned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfmvit.bench import scale, training, training_steps
from cfmvit.models import model_config
from cfmvit.pretrain.flops import flops

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def marked(page: Path, mark: str) -> str:
    return page.read_text().partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0]


def test_the_page_has_the_clusters_as_the_command_makes_them() -> None:
    assert marked(ROOT / "docs" / "scale.md", scale.MARK) == scale.page()


def test_the_page_has_the_record() -> None:
    record = json.loads((ROOT / "bench" / "results" / "training-cpu.json").read_text())
    assert marked(ROOT / "docs" / "scale.md", training.MARK) == training.page(record)


def test_open_clips_towers_are_of_the_same_size() -> None:
    """But for its class tokens, which are one of 64 tokens, and their projection."""
    pytest.importorskip("open_clip")
    config = model_config("cfm_vit_tiny", depth=2, **training_steps.ALONE)
    step = training_steps.open_clips(config, 2, CPU, "fp32")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    assert counter.get_total_flops() == pytest.approx(
        2 * flops(config, config.context_length).training, rel=0.03
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp16"], "--precision must be of fp32, bf16, got fp16"),
        (["--parts", "step,speed"], "--parts must be of step, pieces, .*, got speed"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(arguments)
    assert re.search(message, capsys.readouterr().err)
