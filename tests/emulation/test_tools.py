"""The emulation catches planted faults, and a sound kernel runs."""

from __future__ import annotations

import pytest
import torch

from .emulator import EmulationError, Emulator

FAULTS = {
    "reads_beyond": (1, "AddressSanitizer: heap"),
    "shared_beyond": (2, "AddressSanitizer: heap"),
    "static_beyond": (3, "out of bounds for type 'float \\[32\\]'"),
    "missed_barrier": (4, "barrier not reached by all|divergent exchange"),
    "exited_before_barrier": (5, "barrier not reached by all: .* has exited"),
    "divergent_exchange": (6, "divergent exchange: __shfl_xor_sync .* waits at"),
    "lane_not_in_mask": (7, "which is not in the mask"),
    "no_barrier": (10, "race: byte .* of dynamic shared memory is (read|written) and"),
    "misaligned": (12, "misaligned address"),
    "reads_another_block": (13, "race: byte .* of out is"),
}
BLOCKS, THREADS = 3, 128


def sums(planted: Emulator, fault: int) -> torch.Tensor:
    numbers = torch.arange(BLOCKS * THREADS, dtype=torch.float32)
    return planted("block_sums", {"in": numbers, "blocks": BLOCKS, "fault": fault}, seeds=range(4))["out"]


def test_a_sound_kernel(planted: Emulator) -> None:
    numbers = torch.arange(BLOCKS * THREADS, dtype=torch.float32)
    torch.testing.assert_close(sums(planted, 0), numbers.reshape(BLOCKS, THREADS).sum(1), atol=0, rtol=0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_rule_ends_the_program(planted: Emulator, fault: str) -> None:
    number, message = FAULTS[fault]
    with pytest.raises(EmulationError, match=message):
        sums(planted, number)


@pytest.mark.parametrize("fault", [8, 9], ids=["unwritten", "race"])
def test_outputs_that_depend_on_the_run(planted: Emulator, fault: int) -> None:
    with pytest.raises(AssertionError, match="out depends on the schedule, or is not all written"):
        sums(planted, fault)


def test_shared_memory_that_no_one_has_written_is_nan(planted: Emulator) -> None:
    assert sums(planted, 11).isnan().all()


def test_exchanges_are_those_of_a_gpu(planted: Emulator) -> None:
    """By the CUDA programming guide's definitions, in a block of 16 x 4 threads: two warps."""
    thread = torch.arange(64)
    lane, warp = thread % 32, thread // 32 * 32
    out_of_segment = (lane ^ 8) // 8 > lane // 8
    ballot = sum(1 << i for i in range(0, 32, 3))
    expected = [
        warp + 5,
        warp + lane // 8 * 8 + (lane + 1) % 8,
        warp + (lane ^ 3),
        warp + torch.where(out_of_segment, lane, lane ^ 8),
        warp + torch.where(lane + 30 < 32, lane + 30, lane),
        warp + torch.where(lane % 4 >= 2, lane - 2, lane),
        torch.full((64,), ballot) - 100,
        torch.full((64,), 1) - 100,
        warp + torch.where(lane < 16, lane ^ 15, 31),
        warp + (lane ^ 31),
    ]
    found = planted("exchanges", {})["out"]
    assert torch.equal(found, torch.stack(expected).int() + 100)


@pytest.mark.parametrize(
    "size, message",
    [
        ((1, 1, 1, 1025, 1, 1, 0), "a block of 1025,1,1 threads"),
        ((1, 1, 1, 1, 1, 65, 0), "a block of 1,1,65 threads"),
        ((1, 65536, 1, 1, 1, 1, 0), "a grid of 1,65536,1 blocks"),
        ((1, 1, 1, 1, 1, 1, 99 * 1024 + 1), "bytes of shared memory, beyond the 101376 of every GPU"),
    ],
    ids=["threads", "depth", "blocks", "shared"],
)
def test_launches_beyond_any_gpu(planted: Emulator, size: tuple[int, ...], message: str) -> None:
    planted("launches", {"size": torch.tensor([2, 1, 1, 1024, 1, 1, 99 * 1024])})
    planted("launches", {"size": torch.tensor([0, 1, 1, 2048, 1, 1, 0])})  # an empty grid is no launch
    with pytest.raises(EmulationError, match=message):
        planted("launches", {"size": torch.tensor(size)})


@pytest.mark.parametrize("size", [(2**31, 1, 1), (1, 65536, 1), (1, 1, 65536)])
def test_grids_beyond_any_gpu_are_refused_before_the_launch(planted: Emulator, size: tuple[int, ...]) -> None:
    planted("grids", {"size": torch.tensor([3, 1, 2])})
    with pytest.raises(
        EmulationError, match="sizes must fit a grid, .* got .*{}".format(", ".join(map(str, size)))
    ):
        planted("grids", {"size": torch.tensor(size)})


def test_partial_sums_over_a_batch_fit_a_grid(planted: Emulator) -> None:
    shapes = torch.tensor(
        [(batch, n, d) for batch in (4, 262_141, 2**31) for n, d in ((1, 1), (1, 9), (196, 768))]
    )
    samples = planted("samples_per_partial", {"shapes": shapes})["out"]
    assert (-(-shapes[:, 0] // samples) <= 65_535).all()


@pytest.mark.long
def test_sums_of_more_rows_than_a_grid_takes(planted: Emulator) -> None:
    """More than 65,535 partial sums: by 256 rows each, as the projection's bias has them, 16,776,960 rows."""
    numbers = torch.arange(65_537.0)[:, None]
    assert torch.equal(planted("column_sums", {"in": numbers, "each": 1}, seeds=[1])["out"], numbers)
