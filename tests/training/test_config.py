"""Typed configuration: files, overrides, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from cfmvit.detection import FinetuneConfig
from cfmvit.ops.shared import library
from cfmvit.pretrain import PretrainConfig
from cfmvit.training import LoopConfig, format_config, load_config, save_config
from cfmvit.training.device import choose_device
from cfmvit.training.precision import choose_precision, with_precision


@dataclass
class Inner:
    lr: float = 0.1
    kind: Literal["a", "b"] = "a"


@dataclass
class Outer:
    steps: int = 5
    name: str = "x"
    scale: tuple[float, float] = (0.5, 1.0)
    limit: float | None = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def test_overrides_beat_the_file_which_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('steps = 7\nname = "file"\n[inner]\nlr = 2\n')
    config = load_config(
        Outer, file, ["name=1e5 words", "inner.kind=b", "options.depth=3", "limit=null", "scale=[0.2, 1]"]
    )
    assert config == Outer(7, "1e5 words", (0.2, 1.0), None, {"depth": 3}, Inner(2.0, "b"))
    assert isinstance(config.inner.lr, float)


def test_a_saved_config_comes_back_equal(tmp_path: Path) -> None:
    config = load_config(Outer, None, ["steps=9", "options.a=true"])
    save_config(config, tmp_path / "config.json")
    assert load_config(Outer, tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        json.dumps(dataclasses.asdict(config))
    )


def test_the_printed_config_can_be_given_back() -> None:
    config = load_config(Outer, None, ["name=hello world", "inner.lr=3"])
    lines = [line.replace(" = ", "=", 1) for line in format_config(config).splitlines()]
    assert load_config(Outer, None, lines) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.rate=1", r"unknown key inner\.rate; valid keys: inner\.lr, inner\.kind"),
        ("steps=many", r"steps must be int, got 'many'"),
        ("steps=1.5", r"steps must be int, got 1\.5"),
        ("steps=true", r"steps must be int, got True"),
        ("steps=NaN", r"steps must be int, got nan"),
        ("inner.lr=-Infinity", r"inner\.lr must be float, got -inf"),
        pytest.param(f"inner.lr=1{'0' * 400}", r"inner\.lr must be float, got 1000", id="a huge number"),
        ("inner.kind=c", r"inner\.kind must be one of a, b, got 'c'"),
        ("scale=[1]", r"scale must be tuple\[float, float\], got \[1\]"),
        ("inner=3", r"inner must be a table of keys, got 3"),
        ("steps.x=3", r"unknown key|holds a plain value|steps must be int"),
        ("steps", r"must look like key=value, got 'steps'"),
    ],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Outer, None, [override])


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file at .*gone\.toml"):
        load_config(Outer, tmp_path / "gone.toml")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json can't be read"):
        load_config(Outer, broken)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1").index == 1
    with pytest.raises(ValueError, match=r"device 'cuda:2' was asked for, but torch sees 2 GPUs"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [("AVX2", "fp32"), ("AVX-512", "fp32"), ("AVX-512 with products of bfloat16", "bf16"), (None, "fp32")],
)
def test_precision_follows_the_processor(
    instructions: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Core:
        @staticmethod
        def build_info() -> dict[str, str | None]:
            return {"instruction_set": instructions}

    monkeypatch.setattr(library, "core", None if instructions is None else Core)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == expected
    assert [choose_precision(name, cpu) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    config = LoopConfig(precision="auto", steps=3)
    assert with_precision(config, cpu) == LoopConfig(precision=expected, steps=3)
    assert config.precision == "auto"


@pytest.mark.parametrize(("has_products", "expected"), [(True, "bf16"), (False, "fp32")])
def test_precision_follows_the_gpu(
    has_products: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_products)
    assert choose_precision("auto", torch.device("cuda")) == expected


def test_what_is_not_given_stays_as_the_run_has_it() -> None:
    """A run's defaults are others than those of its parts' classes."""
    for cls in (PretrainConfig, FinetuneConfig):
        whole = cls()
        for override in ("loop.accumulate=4", "optim.lr=0.25"):
            table, _, name = override.partition("=")[0].partition(".")
            found = load_config(cls, overrides=[override])
            changed = dataclasses.replace(
                getattr(whole, table), **{name: json.loads(override.partition("=")[2])}
            )
            assert found == dataclasses.replace(whole, **{table: changed})
    deep = load_config(FinetuneConfig, overrides=["detector.heads.samples=7"])
    assert dataclasses.replace(deep.detector.heads, samples=512) == FinetuneConfig().detector.heads


def test_a_precision_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be auto, fp32 or bf16, got 'bfloat16'"):
        choose_precision("bfloat16", torch.device("cpu"))  # type: ignore[arg-type]
