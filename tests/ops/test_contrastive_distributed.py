"""info_nce over two processes: each rank's gradients are those of the sum of the ranks' losses over the whole batch."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist
from torch.nn import functional as F

from cfmvit.ops import info_nce
from cfmvit.ops.reference import contrastive as reference

WORLD = 2


def features(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 10, dtype=torch.float64, generator=generator), dim=1)


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


def equals_one_device(rank: int) -> None:
    for rows in (1, 70):
        own = slice(rank * rows, (rank + 1) * rows)
        image, text, scale = features(WORLD * rows, 0), features(WORLD * rows, 1), torch.tensor(9.0).double()
        ids = torch.arange(WORLD * rows) % (rows + 2)
        for direction, group_ids, smoothing, reduction in product(
            ("both", "image_to_text", "text_to_image"), (None, ids), (0.0, 0.1), ("mean", "none")
        ):
            whole = leaves_of(image, text, scale)
            options = dict(direction=direction, label_smoothing=smoothing)
            expected = reference.info_nce(*whole, group_ids=group_ids, reduction="none", **options)
            weight = torch.linspace(1, 2, len(expected)).double() if reduction == "none" else 1 / rows
            (expected * weight).sum().backward()

            local = leaves_of(image[own], text[own], scale)
            loss, stats = info_nce(
                *local,
                group_ids=None if group_ids is None else group_ids[own],
                reduction=reduction,
                return_stats=True,
                process_group=dist.group.WORLD,
                **options,
            )
            assert_equal = torch.testing.assert_close
            assert_equal(loss, expected[own] if reduction == "none" else expected[own].mean())
            (loss * weight[own] if reduction == "none" else loss).sum().backward()
            assert_equal(local[0].grad, whole[0].grad[own])
            assert_equal(local[1].grad, whole[1].grad[own])
            dist.all_reduce(local[2].grad)
            assert_equal(local[2].grad, whole[2].grad)
            logits = (scale * image @ text.T).detach()
            assert_equal(stats.lse_text, logits.logsumexp(0)[own])
            same = torch.eye(len(image)).bool() if group_ids is None else ids[:, None] == ids
            others = logits.masked_fill(same, float("-inf"))
            assert_equal(stats.accuracy_text, (logits.diagonal() > others.amax(0))[own].double().mean())


def low_precision(rank: int) -> None:
    own = slice(rank * 40, (rank + 1) * 40)
    image, text, scale = features(80, 0).bfloat16(), features(80, 1).bfloat16(), torch.tensor(20.0)
    whole = leaves_of(image.double(), text.double(), scale.double())
    (reference.info_nce(*whole) * WORLD).backward()
    local = leaves_of(image[own], text[own], scale)
    info_nce(*local, process_group=dist.group.WORLD).backward()
    for x, expected in zip(local[:2], whole[:2], strict=True):
        assert x.grad.dtype == torch.bfloat16
        error = x.grad.double() - expected.grad[own]
        assert error.norm() < 3e-3 * expected.grad.norm()


def subgroup_and_refusals(rank: int) -> None:
    alone = dist.new_group([0])
    x, scale = features(4, rank), torch.tensor(9.0).double()
    if rank == 0:
        torch.testing.assert_close(
            info_nce(x, x.flip(0), scale, process_group=alone), info_nce(x, x.flip(0), scale)
        )
    else:
        with pytest.raises(ValueError, match="process_group must be a group that holds this rank"):
            info_nce(x, x, scale, process_group=alone)
    uneven = features(4 + rank, 0)
    with pytest.raises(
        ValueError, match=r"same shape on every rank of process_group, got \[\(4, 10\), \(5, 10\)\]"
    ):
        info_nce(uneven, uneven, scale, process_group=dist.group.WORLD)
    with pytest.raises(ValueError, match="label_offset be 0 with a process_group"):
        info_nce(x, x, scale, label_offset=4, direction="image_to_text", process_group=dist.group.WORLD)


def _rank_main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for check in (equals_one_device, low_precision, subgroup_and_refusals):
        check(rank)
    dist.destroy_process_group()


def test_two_ranks(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank_main, (str(tmp_path / "store"),), nprocs=WORLD)
