"""The contrastive losses over two and four processes: each rank's gradients are those of the sum of the ranks' losses over the
whole batch, however the texts are exchanged, and what can't work raises on every rank.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from cfmvit.ops import info_nce, siglip_loss
from cfmvit.ops.contrastive import reference

from ..processes import run_ranks

EXCHANGES = ("gather", "ring")


def features(rows: int, seed: int, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=1)


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


def own_rows(rank: int, world: int, rows: int, *tensors: Tensor) -> list[Tensor]:
    """This rank's rows of matrices and all of scalars, as leaves."""
    own = slice(rank * rows, (rank + 1) * rows)
    assert all(x.dim() == 0 or len(x) == world * rows for x in tensors)
    return leaves_of(*(x[own] if x.dim() else x for x in tensors))


def info_nce_equals_one_device(rank: int, world: int) -> None:
    group = dist.group.WORLD
    assert_equal = torch.testing.assert_close
    for rows, exchange, impl in (
        (1, "gather", None),
        (1, "ring", None),
        (35, "gather", None),
        (35, "ring", "reference"),
    ):
        own = slice(rank * rows, (rank + 1) * rows)
        image, text, scale = features(world * rows, 0), features(world * rows, 1), torch.tensor(9.0).double()
        ids = torch.arange(world * rows) % (rows + 2)
        logits = (scale * image @ text.T).detach()
        cases = product(("both", "image_to_text", "text_to_image"), (None, ids), (0.0, 0.1), ("mean", "none"))
        for direction, group_ids, smoothing, reduction in list(cases)[:: 1 if rows > 1 and world == 2 else 5]:
            whole = leaves_of(image, text, scale)
            options = dict(direction=direction, label_smoothing=smoothing)
            expected = reference.info_nce(*whole, group_ids=group_ids, reduction="none", **options)
            weight = torch.linspace(1, 2, len(expected)).double() if reduction == "none" else 1 / rows
            (expected * weight).sum().backward()

            local = own_rows(rank, world, rows, image, text, scale)
            options |= dict(reduction=reduction, exchange=exchange, impl=impl, process_group=group)
            options["group_ids"] = None if group_ids is None else group_ids[own]
            loss, stats = info_nce(*local, return_stats=True, **options)
            assert_equal(loss, expected[own] if reduction == "none" else expected[own].mean())
            (loss * weight[own] if reduction == "none" else loss).sum().backward()
            assert_equal(local[0].grad, whole[0].grad[own])
            assert_equal(local[1].grad, whole[1].grad[own])
            dist.all_reduce(local[2].grad)
            assert_equal(local[2].grad, whole[2].grad)
            assert_equal(stats.lse_text, logits.logsumexp(0)[own])
            same = torch.eye(len(image)).bool() if group_ids is None else ids[:, None] == ids
            others = logits.masked_fill(same, float("-inf"))
            assert_equal(stats.accuracy_text, (logits.diagonal() > others.amax(0))[own].double().mean())
            assert_equal(stats.accuracy_image, (logits.diagonal() > others.amax(1))[own].double().mean())


def siglip_equals_one_device(rank: int, world: int) -> None:
    rows = 20
    tensors = features(world * rows, 0), features(world * rows, 1), *torch.tensor([10.0, -6.0]).double()
    weights = torch.linspace(1, 2, world).double()  # the ranks' losses need not weigh the same
    for exchange, impl in product(EXCHANGES, (None, "reference")):
        whole = leaves_of(*tensors)
        total = 0
        for r in range(world):
            images = whole[0][r * rows : (r + 1) * rows]
            total += weights[r] / rows * reference.sigmoid_loss(images, *whole[1:], r * rows)
        total.backward()
        local = own_rows(rank, world, rows, *tensors)
        loss = siglip_loss(*local, process_group=dist.group.WORLD, exchange=exchange, impl=impl)
        (loss * weights[rank]).backward()
        for x in local[2:]:
            dist.all_reduce(x.grad)
        expected = own_rows(rank, world, rows, *(x.grad for x in whole))
        for x, e in zip(local, expected, strict=True):
            torch.testing.assert_close(x.grad, e.detach())


def bfloat16_gradients_are_rounded_once(rank: int, world: int) -> None:
    image, text, scale = (
        features(80, 0).bfloat16(),
        features(80, 1).bfloat16(),
        torch.tensor(20.0),
    )
    whole = leaves_of(image.double(), text.double(), scale.double())
    (reference.info_nce(*whole) * world).backward()
    for exchange in EXCHANGES:
        local = own_rows(rank, world, 80 // world, image, text, scale)
        info_nce(*local, process_group=dist.group.WORLD, exchange=exchange).backward()
        for x, e in zip(local, own_rows(rank, world, 80 // world, *(x.grad for x in whole)), strict=True):
            assert x.grad.dtype == x.dtype
            assert x.dim() == 0 or (x.grad.double() - e).norm() < 3e-3 * e.norm()


def features_of_any_length(rank: int, world: int) -> None:
    """Logits of +-6000, which no shift shared by the ranks would hold."""
    lengths = torch.linspace(0.01, 30, 24).double()[:, None]
    tensors = features(24, 0) * lengths, features(24, 1) * lengths.flip(0) * 20, torch.tensor(30.0).double()
    whole = leaves_of(*tensors)
    expected = reference.info_nce(*whole, reduction="none")
    expected.sum().backward()
    local = own_rows(rank, world, 24 // world, *tensors)
    loss = info_nce(*local, reduction="none", process_group=dist.group.WORLD)
    loss.sum().backward()
    torch.testing.assert_close(loss, expected.chunk(world)[rank])
    for x, e in zip(local[:2], whole, strict=False):
        torch.testing.assert_close(x.grad, e.grad.chunk(world)[rank])


def gradients_are_exact_for_logits_of_any_size(rank: int, world: int) -> None:
    """No worse than plain float32 with the whole matrix, by a factor of two where that is exact to 1e-5."""
    rows = 30

    def plain(leaves: list[Tensor]) -> tuple[Tensor, ...]:
        """Of the sum of the ranks' losses; the scale's share of one rank is not known from it."""
        logits, labels = leaves[2] * leaves[0] @ leaves[1].T, torch.arange(len(leaves[0]))
        loss = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
        return torch.autograd.grad(world * loss / 2, leaves)

    unit = features(world * rows, 0, 48).float(), features(world * rows, 1, 48).float()
    for size, unnormalised in product((1.0, 1e2, 1e6, 1e15), (False, True)):
        lengths, scale = (size**0.5, 1.0) if unnormalised else (1.0, size)
        tensors = *(lengths * x for x in unit), torch.tensor(scale)
        exact, rounded = plain(leaves_of(*(x.double() for x in tensors))), plain(leaves_of(*tensors))
        for exchange, impl in product(EXCHANGES, (None, "reference")):
            local = own_rows(rank, world, rows, *tensors)
            info_nce(*local, process_group=dist.group.WORLD, exchange=exchange, impl=impl).backward()
            dist.all_reduce(local[2].grad)
            for x, r, e in zip(local, rounded, exact, strict=True):
                own = slice(rank * rows, (rank + 1) * rows) if e.dim() else ()
                error = lambda found, e=e, own=own: float((found.double() - e[own]).norm() / e[own].norm())
                assert x.grad.isfinite().all()
                bound = max(error(r[own]), min(2 * error(r[own]), 1e-5), 2e-7)
                assert error(x.grad) <= bound, (size, unnormalised, exchange, impl, error(x.grad), bound)


def same_bits_on_every_run(rank: int, world: int) -> None:
    tensors = features(60 * world, 0).float(), features(60 * world, 1).float(), torch.tensor(20.0)
    for exchange in EXCHANGES:
        runs = []
        for _ in range(3):
            local = own_rows(rank, world, 60, *tensors)
            info_nce(*local, process_group=dist.group.WORLD, exchange=exchange).backward()
            runs.append([x.grad for x in local])
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def frozen_towers(rank: int, world: int) -> None:
    for loss, exchange, trained in product((info_nce, siglip_loss), EXCHANGES, range(3)):
        x, scale = features(4, rank), torch.tensor(9.0).double()
        leaves = [x.requires_grad_(i == trained) for i, x in enumerate((x, x.flip(0), scale))]
        loss(*leaves, process_group=dist.group.WORLD, exchange=exchange).backward()
        assert [x.grad is not None for x in leaves] == [i == trained for i in range(3)]
        assert leaves[trained].grad.any()


def retained_and_second_derivatives(rank: int, world: int) -> None:
    for loss_fn, exchange in product((info_nce, siglip_loss), EXCHANGES):
        local = own_rows(rank, world, 5, features(5 * world, 0), features(5 * world, 1), torch.tensor(9.0))
        loss = loss_fn(*local, process_group=dist.group.WORLD, exchange=exchange)
        first = torch.autograd.grad(loss, local, retain_graph=True)
        again = torch.autograd.grad(loss, local, create_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            again[0].sum().backward()


def uneven_ranks_raise_everywhere(rank: int, world: int) -> None:
    group, scale = dist.group.WORLD, torch.tensor(9.0).double()
    x, last = features(4, rank), rank == world - 1
    uneven, narrow = features(4 + last, 0), features(4, 0, 10 + last)
    places = [(4, 10)] * (world - 1)
    for loss in (info_nce, siglip_loss):
        for y, found in ((uneven, [*places, (5, 10)]), (narrow, [*places, (4, 11)])):
            with pytest.raises(ValueError) as error:
                loss(y, y, scale, process_group=group)
            message = f"image must be the same on every rank of process_group, got {found}"
            assert message in str(error.value)
        with pytest.raises(ValueError, match=r"exchange must be the same on every rank"):
            loss(x, x, scale, process_group=group, exchange="ring" if last else "gather")
        with pytest.raises(ValueError, match=r"requires_grad must be the same on every rank"):
            loss(x, x.clone().requires_grad_(last), scale, process_group=group)
    with pytest.raises(ValueError, match=r"options must be the same on every rank"):
        info_nce(x, x, scale, process_group=group, return_stats=last)
    with pytest.raises(ValueError, match="label_offset be 0 with a process_group"):
        info_nce(x, x, scale, label_offset=4, direction="image_to_text", process_group=group)


def a_rank_that_fails_alone_stops_the_others(rank: int, world: int) -> None:
    group = dist.new_group(timeout=timedelta(seconds=5))
    x, scale = features(4, rank), torch.tensor(9.0).double()
    bad = x.long() if rank == 0 else x
    error, message = (TypeError, "floating point") if rank == 0 else (RuntimeError, "[Tt]imed out")
    with pytest.raises(error, match=message):
        info_nce(bad, bad, scale, process_group=group)
    dist.barrier()  # the failed rank lives on: it is the time-out that frees the others, not a closed connection


def a_group_of_some(rank: int, world: int) -> None:
    alone = dist.new_group([0])
    x, scale = features(4, rank), torch.tensor(9.0).double()
    if rank == 0:
        for loss, exchange in product((info_nce, siglip_loss), EXCHANGES):
            together = loss(x, x.flip(0), scale, process_group=alone, exchange=exchange)
            torch.testing.assert_close(together, loss(x, x.flip(0), scale))
    else:
        with pytest.raises(ValueError, match="process_group must be a group that holds this rank"):
            info_nce(x, x, scale, process_group=alone)


def another_default_device(rank: int, world: int) -> None:
    x, scale = features(4, rank), torch.tensor(9.0).double()
    torch.set_default_device("meta")
    try:
        for loss, exchange in product((info_nce, siglip_loss), EXCHANGES):
            leaf = x.clone().requires_grad_()
            loss(leaf, x.flip(0), scale, process_group=dist.group.WORLD, exchange=exchange).backward()
            assert leaf.grad.device.type == "cpu"
    finally:
        torch.set_default_device(None)


CHECKS: list[Callable[[int, int], None]] = [
    info_nce_equals_one_device,
    siglip_equals_one_device,
    bfloat16_gradients_are_rounded_once,
    features_of_any_length,
    gradients_are_exact_for_logits_of_any_size,
    same_bits_on_every_run,
    frozen_towers,
    retained_and_second_derivatives,
    uneven_ranks_raise_everywhere,
    a_group_of_some,
    another_default_device,
    a_rank_that_fails_alone_stops_the_others,  # leaves its group broken
]


def _rank_main(rank: int, world: int, store: str, results: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=300)
    )
    for check in CHECKS:
        try:
            check(rank, world)
        except BaseException:
            Path(f"{results}-{rank}").write_text(f"{check.__name__}\n{traceback.format_exc()}")
            raise
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks(world: int, tmp_path: Path) -> None:
    run_ranks(_rank_main, world, str(tmp_path / "store"), str(tmp_path / "result"))
