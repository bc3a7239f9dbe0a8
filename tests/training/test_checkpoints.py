"""Checkpoints: whole on the disk or not there, checked when they are read, written beside the training."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from cfmvit.training import World, param_groups, saving
from cfmvit.training.checkpoint import checkpoints, last_whole, load_checkpoint
from cfmvit.training.checkpoint_folder import read_state
from cfmvit.training.run_folder import run_folder
from cfmvit.training.saving import Saving
from tests.processes import exit_codes

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS")


class Run:
    """A model and its optimizer, some steps trained."""

    def __init__(self, output: Path, width: int = 8, kind: type = torch.optim.AdamW) -> None:
        torch.manual_seed(0)
        self.output = output
        self.model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
        self.model[0].bias.requires_grad_(False)
        self.optimizer = kind(param_groups(self.model, lr=1e-2, weight_decay=0.1))
        self.saving = Saving(output, self.model, self.optimizer, World(torch.device("cpu")))
        self.step = 0

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 3, generator=torch.Generator().manual_seed(self.step))).sum().backward()
        self.optimizer.step()
        self.step += 1

    def save(self) -> Path:
        self.train()
        self.saving.save(self.step)
        self.saving.finish()
        return last_whole(self.output)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_what_is_restored_goes_on_bit_for_bit(tmp_path: Path, kind: type) -> None:
    run, again = Run(tmp_path, kind=kind), Run(tmp_path, kind=kind)
    again.step = load_checkpoint(run.save(), again.model, again.optimizer)
    assert again.step == 1
    for one in (run, again):
        one.train()
    for mine, other in zip(again.model.state_dict().values(), run.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_the_weights_that_are_written_are_those_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while the disk is slow; the next save waits for the one before."""
    run, go_on, real = Run(tmp_path), threading.Event(), saving.write_state

    def slowly(*arguments: object) -> None:
        assert go_on.wait(600)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_state", slowly)
    run.train()
    expected = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.saving.save(1)
    run.train()
    assert not checkpoints(tmp_path)
    go_on.set()
    run.saving.finish()
    found = read_state(last_whole(tmp_path)).model
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_the_two_last_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for _ in range(4):
        run.save()
    assert [path.name for path in checkpoints(tmp_path)] == ["00000003", "00000004"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000003", "00000004"]


def _die(rank: int, size: int, port: int, output: str, module: str, function: str) -> None:
    """Save once, and be killed where the second save comes to call a function."""
    run = Run(Path(output))
    run.save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[module], function, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        run.save()


@pytest.mark.parametrize(
    ("module", "function", "left"),
    [
        ("checkpoint_folder", "sync", 1),  # all is written, nothing is on the disk for sure
        ("saving", "keep_last", 2),
    ],
)
def test_a_kill_while_it_is_written_leaves_the_one_before(
    tmp_path: Path, module: str, function: str, left: int
) -> None:
    arguments = (str(tmp_path), f"cfmvit.training.{module}", function)
    assert exit_codes(_die, 1, *arguments) == [-signal.SIGKILL]
    assert last_whole(tmp_path).name == f"{left:08d}"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "what was half-written lies beside it"
    with run_folder(tmp_path, World(torch.device("cpu")), resume=True, overwrite=False, product="model"):
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == [f"{step:08d}" for step in range(1, left + 1)]


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_and_no_cut_goes_unseen(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, width=2)
    before, path = run.save(), run.save()
    whole = (path / name).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 61)):
        for damaged in (whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :], whole[:place]):
            (path / name).write_bytes(damaged)
            caplog.clear()
            assert last_whole(tmp_path) == before
            (said,) = caplog.messages
            assert f"resume: {path}" in said and f"goes on from {before}, the one before" in said
            assert name in said or name == "SHA256SUMS"
    (path / name).write_bytes(whole)
    assert last_whole(tmp_path) == path


def test_a_run_that_went_on_from_the_one_before_replaces_the_damaged(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for _ in range(2):
        path = run.save()
    (path / FILES[0]).unlink()
    run.step = load_checkpoint(last_whole(tmp_path), run.model, run.optimizer)
    assert run.step == 1
    run.save()
    assert last_whole(tmp_path) == path
    (path / FILES[0]).unlink()
    (checkpoints(tmp_path)[0] / FILES[0]).unlink()
    with pytest.raises(
        ValueError, match=r"00000002/model.safetensors is missing; .*00000001/.*no checkpoint is left"
    ):
        last_whole(tmp_path)


def test_a_checksum_is_one_of_the_shell(tmp_path: Path) -> None:
    path = Run(tmp_path).save()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 9}, "size mismatch for 0.weight"),
        ({"kind": torch.optim.SGD}, "the optimizer must be SGD, got AdamW"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    path = Run(tmp_path).save()
    other = Run(tmp_path, **options)
    with pytest.raises(ValueError, match=f"(?s)resume: .*00000001 belongs to another .*{message}"):
        load_checkpoint(path, other.model, other.optimizer)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file grow beyond a size; to a writer that is a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_error_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, width=256)
    path = run.save()
    with (
        disk_of(4096),
        pytest.raises(OSError, match=rf"00000002/.* too large.* last good checkpoint is {path}"),
    ):
        run.save()
    assert last_whole(tmp_path) == path
    assert [found.name for found in (tmp_path / "checkpoints").iterdir()] == [path.name]


def test_an_error_of_the_disk_is_told_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoints/00000001")

    monkeypatch.setattr(saving, "write_state", full)
    run = Run(tmp_path)
    run.train()
    run.saving.save(1)
    run.saving.close()
    with pytest.raises(OSError, match=r"No space left .*00000001.*; no checkpoint had been saved yet"):
        run.saving.check()
