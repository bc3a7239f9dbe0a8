"""The training loop: accumulation, exact resume, refusal of non-finite losses, atomic files."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit import _io
from cfmvit._io import atomic_dir, atomic_write
from cfmvit.training import (
    LoopConfig,
    MeanGradients,
    NonFiniteLossError,
    World,
    fit,
    loop,
    param_groups,
    warmup_cosine,
    warmup_linear,
    warmup_steps,
)
from cfmvit.training.checkpoint import last_whole, load_checkpoint
from cfmvit.training.checkpoint_folder import read_state
from cfmvit.training.run_folder import run_folder
from cfmvit.training.stopping import Stopped

CPU = torch.device("cpu")


class Batches:
    """Batch k is a pure function of k."""

    batch_size, remarked = 4, 0
    skipped_paths: tuple[str, ...] = ()

    def iterate(self, start: int = 0) -> Iterator[dict[str, Any]]:
        while True:
            generator = torch.Generator().manual_seed(start)
            yield {"x": torch.randn(4, 3, generator=generator), "keys": [f"sample-{start}"] * 4}
            start += 1


def run(
    output: Path, *, resume: bool = False, stop: int | None = None, loader: Any = None, **options: Any
) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    config = LoopConfig(**{"steps": 6, "log_every": 1, "save_every": 2, **options})
    calls = 0

    def losses(batch: dict[str, Any], generators: list[torch.Generator]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if stop is not None and calls > stop:
            raise KeyboardInterrupt
        noise = torch.cat([torch.randn(1, 1, generator=generator) for generator in generators])
        return {"loss": (model(batch["x"]) - noise).square().mean()}

    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2, weight_decay=0.1))
    fit(
        model=model,
        gradients=MeanGradients(losses, World(CPU)),
        world=World(CPU),
        optimizer=optimizer,
        schedule=warmup_linear(2, config.steps),
        loader=loader or Batches(),
        config=config,
        output=output,
        start=load_checkpoint(last_whole(output), model, optimizer) if resume else 0,
    )
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path, accumulate: int) -> None:
    whole = run(tmp_path / "whole", accumulate=accumulate)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop=5 * accumulate, accumulate=accumulate)
    resumed = run(tmp_path / "broken", resume=True, accumulate=accumulate)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()):
        assert torch.equal(a, b)
    logs = []
    for name in ("whole", "broken"):
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append(
            [
                {k: v for k, v in record.items() if k not in ("images_per_s", "data_wait")}
                for record in records
            ]
        )
    assert logs[0] == logs[1]
    assert [record["step"] for record in logs[1]] == [0, 1, 2, 3, 4, 5]


def test_a_non_finite_loss_names_step_and_batch_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    kept = last_whole(tmp_path)
    model = nn.Linear(3, 1)
    with pytest.raises(
        NonFiniteLossError, match=r"step 2: .*nan.*sample-2.*last good checkpoint is .*checkpoints/00000002"
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2, weight_decay=0.1))
        fit(
            model=model,
            gradients=MeanGradients(
                lambda batch, generators: {"loss": model(batch["x"]).mean() * float("nan")}, World(CPU)
            ),
            world=World(CPU),
            optimizer=optimizer,
            schedule=warmup_linear(2, 6),
            loader=Batches(),
            config=LoopConfig(steps=6),
            output=tmp_path,
            start=load_checkpoint(last_whole(tmp_path), model, optimizer),
        )
    assert last_whole(tmp_path) == kept


def test_a_non_finite_gradient_stops_before_the_weights_change(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(1))
    model = nn.ParameterList([weight])
    with pytest.raises(
        NonFiniteLossError, match=r"step 0: the gradient is not finite: .*keys: \['sample-0', "
    ):
        fit(
            model=model,
            gradients=MeanGradients(
                lambda batch, generators: {"loss": weight.abs().sqrt().sum()}, World(CPU)
            ),
            world=World(CPU),
            optimizer=torch.optim.AdamW(param_groups(model, lr=1e-2, weight_decay=0.0)),
            schedule=lambda step: 1.0,
            loader=Batches(),
            config=LoopConfig(steps=1),
            output=tmp_path,
        )
    assert weight.item() == 0.0


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (math.nan, r"0 is not finite after step 2; the last good checkpoint is"),
        # Weights that are finite and useless.
        (1e30, r"step 3: the loss .* is not finite.*last good checkpoint is"),
    ],
)
def test_weights_that_are_no_good_are_never_saved(tmp_path: Path, rate: float, message: str) -> None:
    weight = nn.Parameter(torch.ones(1))
    model = nn.ParameterList([weight])
    rates = iter([1.0, 1.0, rate, 1.0])
    with pytest.raises(NonFiniteLossError, match=message):
        fit(
            model=model,
            gradients=MeanGradients(lambda batch, generators: {"loss": weight.square().sum()}, World(CPU)),
            world=World(CPU),
            optimizer=torch.optim.AdamW(param_groups(model, lr=1e-2, weight_decay=0.0)),
            schedule=lambda step: next(rates),
            loader=Batches(),
            config=LoopConfig(steps=3 if math.isnan(rate) else 4, save_every=1),
            output=tmp_path,
        )
    saved = read_state(last_whole(tmp_path))
    assert saved.step == 2 and saved.model["0"].isfinite().all()


def test_an_optimizer_state_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2, weight_decay=0.0))
    # An infinite second moment freezes its weight for good, and neither a weight nor a loss tells.
    state = {"step": torch.zeros(()), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.full((1,), math.inf)}
    optimizer.state[model.bias] = state
    with pytest.raises(
        NonFiniteLossError, match=r"exp_avg_sq of bias is not finite after step 0; no checkpoint"
    ):
        fit(
            model=model,
            gradients=MeanGradients(lambda batch, generators: {"loss": model(batch["x"]).mean()}, World(CPU)),
            world=World(CPU),
            optimizer=optimizer,
            schedule=lambda step: 1.0,
            loader=Batches(),
            config=LoopConfig(steps=1),
            output=tmp_path,
        )
    assert not (tmp_path / "checkpoints").exists()


def test_groups_leave_vectors_undecayed_and_scale_rates() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    groups = param_groups(
        model, lr=1.0, weight_decay=0.1, lr_scale=lambda name: 0.5 if name.startswith("backbone") else 1.0
    )
    found = {(g["lr"], g["weight_decay"]): [tuple(p.shape) for p in g["params"]] for g in groups}
    assert found == {(0.5, 0.1): [(2, 2)], (0.5, 0.0): [(2,)], (1.0, 0.1): [(2, 2)], (1.0, 0.0): [(2,)]}


def test_schedules() -> None:
    linear, cosine, steps = warmup_linear(2, 10), warmup_cosine(2, 10), warmup_steps(2, [8, 4], 0.1)
    assert [linear(0), linear(1), linear(2), linear(6), linear(10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert cosine(6) == pytest.approx(0.5)
    assert [steps(3), steps(4), steps(9)] == pytest.approx([1.0, 0.1, 0.01])


def test_atomic_write_leaves_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path, "w") as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_atomic_dir_replaces_whole_folders_only(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with atomic_dir(tmp_path / "d") as staging:
            (staging / text).write_text(text)
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "d") as staging:
        (staging / "three").write_text("three")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["two"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_first(tmp_path: Path, number: signal.Signals) -> None:
    whole = run(tmp_path / "whole", save_every=100)

    class Signalling(Batches):
        def iterate(self, start: int = 0) -> Iterator[dict[str, Any]]:
            for step, batch in enumerate(super().iterate(start), start):
                if step == 3:
                    os.kill(os.getpid(), number)
                yield batch

    with pytest.raises(Stopped) as stopped:
        run(tmp_path / "stopped", save_every=100, loader=Signalling())
    assert stopped.value.signal == number
    assert signal.getsignal(number) is not None
    resumed = run(tmp_path / "stopped", save_every=100, resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("moment", ["in the last step", "as it is saved"])
def test_a_run_asked_to_stop_at_its_end_is_saved_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What would come after it, such as the next stage of the demo, does not begin."""
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)

    class Signalling(Batches):
        def iterate(self, start: int = 0) -> Iterator[dict[str, Any]]:
            for step, batch in enumerate(super().iterate(start), start):
                if moment == "in the last step" and step == 5:  # of six
                    interrupt()
                yield batch

    if moment == "as it is saved":
        write = loop.Saving._write
        monkeypatch.setattr(loop.Saving, "_write", lambda *of: (interrupt(), write(*of)))
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", save_every=100, loader=Signalling())
    monkeypatch.undo()
    resumed = run(tmp_path / "stopped", save_every=100, resume=True)
    for a, b in zip(run(tmp_path / "whole", save_every=100).parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_a_loss_that_grows_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = loop._Divergence()
    with caplog.at_level(logging.WARNING):
        for step, value in enumerate([3.0, 1.5, 2.0, 9.0, 40.0, 1335.0]):
            watch.look(step, {"box": value, "loss": value})
    assert [record.getMessage() for record in caplog.records] == [
        "box is 40 at step 4 and was 1.5: training diverges; a lower optim.lr may help"
    ]


def test_a_worker_that_dies_names_the_last_checkpoint(tmp_path: Path) -> None:
    class Dying(Batches):
        def iterate(self, start: int = 0) -> Iterator[dict[str, Any]]:
            yield from itertools.islice(super().iterate(start), 3)
            raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed.")

    with pytest.raises(
        RuntimeError,
        match=r"step 3: the batch can't be loaded: .*killed.*the last good checkpoint is .*00000002",
    ):
        run(tmp_path, loader=Dying())


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: .*file\.txt"),
        atomic_write(tmp_path / "file.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for exchange in (True, False):
        if not exchange:
            monkeypatch.setattr(_io, "_exchange", lambda *_: False)
        for text in ("one", "two"):
            with atomic_dir(tmp_path / "d") as staging:
                (staging / text).write_text(text)
        assert [p.name for p in tmp_path.iterdir()] == ["d"]
        assert [p.name for p in (tmp_path / "d").iterdir()] == ["two"]


def test_what_killed_runs_leave_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".model.x.cfmvit-old" / "model").mkdir(parents=True)
    (tmp_path / ".model.y.cfmvit-part").mkdir()
    (tmp_path / ".config.json.z.cfmvit-part").write_text("half")
    (tmp_path / "checkpoints" / ".00000002.x.cfmvit-part").mkdir(parents=True)
    with run_folder(tmp_path, World(CPU), resume=False, overwrite=False, product="detector"):
        pass
    left = sorted(p.relative_to(tmp_path).name for p in tmp_path.rglob("*"))
    assert left == ["checkpoints", "model"], "the model was put aside for one that never came"


def test_files_of_others_are_not_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".config.old" / "own").mkdir(parents=True)
    (tmp_path / ".movie.part").write_text("half")
    with run_folder(tmp_path, World(CPU), resume=False, overwrite=False, product="detector"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".config.old", ".movie.part"]


def test_what_an_overwriting_run_put_aside_is_not_lost_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "checkpoints.previous" / "00000007").mkdir(parents=True)
    refused = pytest.raises(
        FileExistsError, match=r"already holds a run \(checkpoints.previous\); --overwrite"
    )
    with refused, run_folder(tmp_path, World(CPU), resume=False, overwrite=False, product="model"):
        raise AssertionError
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at .*; .*checkpoints.previous is that of the run before"
    ):
        last_whole(tmp_path)


def test_a_worker_that_outlives_a_killed_run_does_not_hold_its_folder(tmp_path: Path) -> None:
    enter = lambda: run_folder(tmp_path / "run", World(CPU), resume=False, overwrite=False, product="model")
    run = subprocess.Popen(
        [sys.executable, "-c", _LEAVES_A_CHILD, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    assert run.stdout is not None
    child = int(run.stdout.readline())
    try:
        run.kill()
        run.wait()
        with enter():
            pass
    finally:
        os.kill(child, signal.SIGKILL)


_LEAVES_A_CHILD = """
import os, pathlib, sys, time, torch
from cfmvit.training import World
from cfmvit.training.run_folder import run_folder
with run_folder(pathlib.Path(sys.argv[1]), World(torch.device("cpu")), resume=False, overwrite=False, product="model"):
    if not (child := os.fork()):
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_one_run_a_folder(tmp_path: Path) -> None:
    again = lambda: run_folder(tmp_path / "run", World(CPU), resume=False, overwrite=False, product="model")
    own = f"run: process {os.getpid()} on {socket.gethostname()} is running in .*run; --output"
    busy = pytest.raises(RuntimeError, match=own)
    with again(), busy, again():
        raise AssertionError
    with again():
        pass
    with (
        pytest.raises(KeyError),
        run_folder(tmp_path / "new", World(CPU), resume=False, overwrite=False, product="model"),
    ):
        raise KeyError
    assert not (tmp_path / "new").exists()
