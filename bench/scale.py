"""Pretraining on paper: what large clusters take a step, what they exchange, and what each form of the contrastive loss holds.

    python -m cfmvit.bench.scale --into docs/scale.md

Formulas alone, those of ``cfmvit pretrain --plan``; nothing is measured.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from cfmvit.bench.summary import put_between_marks
from cfmvit.bench.tables import markdown
from cfmvit.pretrain import PretrainConfig
from cfmvit.pretrain.config import PROTOCOLS
from cfmvit.pretrain.exchange import gradient_bytes, logits_memory, loss_bytes, loss_memory
from cfmvit.pretrain.plan import UTILISATION, Plan, make_plan
from cfmvit.training import load_config

MARK = "cluster"
DEVICES, BATCHES = (8, 64, 256, 1024), (16_384, 65_536)
TFLOPS, MEMORY, FILLED = 989.0, 80e9, 0.9  # of an H100; what is filled of its memory


def table(protocol: str) -> str:
    """Return the table of a protocol as markdown."""
    head = (
        *("devices", "batch", "on each", "pieces", "towers", "loss", "days", "memory"),
        *("gradients sent", "loss received: gather", "ring"),
        *("loss held: open_clip", "its local_loss", "ours, gather", "ours, ring"),
    )
    config = load_config(PretrainConfig, PROTOCOLS / f"{protocol}.toml", [f"device_tflops={TFLOPS}"])
    plan = make_plan(config, 1)
    return markdown(head, [_row(_fitting(plan, devices, batch)) for batch in BATCHES for devices in DEVICES])


def _fitting(plan: Plan, devices: int, batch: int) -> Plan:
    """Return the plan of a cluster, with the fewest pieces that fit into a device."""
    plan = replace(plan, devices=devices, batch=batch, pieces=1, form="ring")
    while sum(plan.memory().values()) > FILLED * MEMORY:
        plan = replace(plan, pieces=2 * plan.pieces)
    return plan


def _row(plan: Plan) -> tuple[str, ...]:
    of_batch = (plan.batch, plan.devices, plan.model.joint_width, plan.item)
    seconds = plan.seconds()
    assert seconds is not None
    of_loss = seconds * plan.of_loss / (plan.executed + plan.of_loss)
    return (
        f"{plan.devices:,}",
        f"{plan.batch:,}",
        f"{plan.batch // plan.devices:,}",
        f"{plan.pieces}",
        f"{seconds - of_loss:.3g} s",
        f"{1e3 * of_loss:.3g} ms",
        f"{plan.steps * seconds / 86_400:.3g}",
        _size(sum(plan.memory().values())),
        _size(gradient_bytes(sum(plan.parameters.values()), plan.devices)),
        _size(loss_bytes("gather", *of_batch)),
        _size(loss_bytes("ring", *of_batch)),
        _size(logits_memory(*of_batch, local=False)),
        _size(logits_memory(*of_batch, local=True)),
        _size(loss_memory("gather", *of_batch)),
        _size(loss_memory("ring", *of_batch)),
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def page() -> str:
    """Return what is put between the marks of docs/scale.md."""
    parts = [
        f"Time at {UTILISATION:.0%} of {TFLOPS:g} TFLOP/s in bfloat16, an H100's, without waiting for the network; pieces as few as fit "
        f"into {FILLED:.0%} of {MEMORY / 1e9:.0f} GB. A step and device: the towers' time with the pass that pieces repeat, the loss's, "
        "what is sent for the gradients and received for the loss. Then what each loss holds, of which `memory` has our ring's.",
        *(f"`{name}`:\n\n{table(name)}" for name in ("l16", "b16")),
    ]
    return "\n" + "\n\n".join(parts) + "\n\n"


def main(argv: list[str] | None = None) -> None:
    """Print the tables, or put them into a page."""
    parser = argparse.ArgumentParser(prog="python -m cfmvit.bench.scale", description=__doc__)
    parser.add_argument("--into", type=Path, help=f"put them between the marks <!-- {MARK} --> of this file")
    into = parser.parse_args(argv).into
    print(page()) if into is None else put_between_marks(into, page(), MARK)


if __name__ == "__main__":
    main()
