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
    "misaligned": (12, "misaligned address"),
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


@pytest.mark.parametrize("fault", [10, 11], ids=["no_barrier", "nothing_in_shared"])
def test_shared_memory_that_no_one_has_written_is_nan(planted: Emulator, fault: int) -> None:
    assert sums(planted, fault).isnan().all()
