"""What a pretraining will take: held to what a small one takes, and to the protocols that the package brings."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import distributed as dist

from cfmvit._commands import protocols
from cfmvit.cli import main
from cfmvit.demo.presets import PRESETS
from cfmvit.models import create_model
from cfmvit.ops import info_nce
from cfmvit.ops.contrastive import collectives, text_exchange
from cfmvit.pretrain import PretrainConfig
from cfmvit.pretrain.exchange import Form, gradient_bytes, loss_bytes
from cfmvit.pretrain.plan import Plan, make_plan
from cfmvit.training import load_config
from tests.processes import run_ranks

NAMED = {path.stem: path for path in protocols("pretrain")}


def plan(name: str, *overrides: str, devices: int = 1) -> Plan:
    return make_plan(load_config(PretrainConfig, NAMED[name], list(overrides)), devices)


@pytest.mark.parametrize(
    "options", [{}, {"reconstruction": "pixel"}, {"reconstruction": "none", "pos_embed": "learned"}], ids=str
)
def test_parameters_are_those_of_the_model(options: dict[str, str]) -> None:
    model = create_model("cfm_vit_tiny", vocab_size=300, **options)
    config = PretrainConfig(model="cfm_vit_tiny", vocab_size=300, model_options=dict(options))
    assert sum(make_plan(config, 1).parameters.values()) == sum(p.numel() for p in model.parameters())


def test_theprotocols() -> None:
    """Batches and steps as the paper has them; one fits into a GPU of 24 GB; one is the demo's."""
    assert [plan(name).batch for name in ("b16", "l16")] == [4096, 16384]
    assert all(plan(name).steps == 500_000 for name in ("b16", "l16"))
    small = plan("b16-24gb")
    assert small.batch == 4096 and 10e9 < sum(small.memory().values()) < 20e9
    assert load_config(PretrainConfig, NAMED["scenes"]) == PRESETS["default"].pretrain


def test_time_and_memory_follow_the_cluster() -> None:
    one, many = (plan("l16", "device_tflops=989", devices=devices) for devices in (64, 256))
    assert one.seconds() == pytest.approx(4 * many.seconds())
    assert one.memory()["activations"] == 4 * many.memory()["activations"]
    pieces = plan("l16", "device_tflops=989", "loop.accumulate=4", devices=64)
    assert pieces.memory()["activations"] == many.memory()["activations"]
    assert 1.2 < pieces.seconds() / one.seconds() < 4 / 3
    again = replace(one, checkpointed=True)
    assert again.memory()["activations"] < 0.2 * one.memory()["activations"]
    assert again.executed == pytest.approx(4 / 3 * one.executed, rel=0.01)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", "l16", "--plan", "--devices", "64", "device_tflops=989"]) == 0
    printed = capsys.readouterr().out
    assert "16,384 on 64 devices, 256 on each, bf16" in printed
    assert re.search(r"time +\d\S* s a step, [\d,]+ images/s, 1\.5 days, at 40% of 989 TFLOP/s", printed)
    assert main(["pretrain", "--config", "l16", "--plan"]) == 0
    assert torch.cuda.is_available() or "device_tflops=N says the peak of a device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan", "--devices", "0"], "devices must be at least 1, got 0"),
        (
            ["--plan", "--devices", "3"],
            "batch_size must be a multiple of 3 devices times loop.accumulate = 1",
        ),
        (["--plan", "sharding=fsdp"], "sharding must be none for a plan"),
        (["--devices", "3"], "--devices must come with --plan"),
        (["--plan", "model=nothing"], "name must be one of cfm_vit_b16"),
        (["--plan", "--config", "b17"], "--config must be a file, or one of b16-24gb, b16, l16, scenes"),
    ],
)
def test_what_can_not_be_planned(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *words]) == 2
    assert message in capsys.readouterr().err


def _count(rank: int, size: int, store: str, form: Form) -> None:
    """Count what comes from other ranks, by the sizes of what is exchanged."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    came, batch, width = [0], 24, 16
    with pytest.MonkeyPatch.context() as patch:
        gather, scatter, exchange = collectives.all_gather, collectives.reduce_scatter, collectives.exchange
        of_others = lambda tensor, share: came.append(tensor.nbytes * (size - 1) // share)

        def gathering(out, *rest, **options):
            of_others(out, size)
            return gather(out, *rest, **options)

        def scattering(out, sums, *rest, **options):
            of_others(sums, size)
            return scatter(out, sums, *rest, **options)

        def exchanging(rows, group):
            of_others(rows, size)
            return exchange(rows, group)

        class Passing(text_exchange._Passing):
            def __init__(self, mine, ring):
                came.append(mine.nbytes)
                super().__init__(mine, ring)

        patch.setattr(collectives, "all_gather", gathering)
        patch.setattr(collectives, "reduce_scatter", scattering)
        patch.setattr(collectives, "exchange", exchanging)
        patch.setattr(text_exchange, "_Passing", Passing)
        patch.setattr(collectives, "check_alike", lambda *_, **__: None)  # a few words
        image, text = (torch.randn(batch // size, width, requires_grad=True) for _ in range(2))
        scale = torch.tensor(1.0, requires_grad=True)
        info_nce(image, text, scale, process_group=dist.group.WORLD, exchange=form).backward()
    assert sum(came) == loss_bytes(form, batch, size, width, 4)
    dist.destroy_process_group()


@pytest.mark.parametrize("form", ["gather", "ring"])
def test_the_loss_exchanges_what_is_planned(form: Form, tmp_path) -> None:
    run_ranks(_count, 3, str(tmp_path / "store"), form)


def test_gradients_go_round_twice_but_for_the_own_part() -> None:
    assert gradient_bytes(1000, 1) == 0
    assert gradient_bytes(1000, 4) == 2 * 3 * 1000
