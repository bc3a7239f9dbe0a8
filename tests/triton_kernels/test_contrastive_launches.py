"""What the Triton route asks of a device, on tensors without data: how many launches, and never to wait for a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton")

# Operators that launch nothing.
FREE = {
    "aten.empty.memory_format",
    "aten.new_empty.default",
    "aten.empty_like.default",
    "aten.detach.default",
}


class Recorder(TorchDispatchMode):
    """Writes down every launch, of PyTorch's operators and of the Triton kernels replaced by `kernel`."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and str(func) not in FREE and func.namespace != "prim":
            self.launches.append(str(func))
        return out

    def kernel(self, name: str) -> object:
        recorder = self

        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                assert all(type(n) is int and 0 < n < 2**31 for n in grid)
                return lambda *args, **options: recorder.launches.append(name)

        return Kernel()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Records under a mode in which whatever depends on data raises: a number read back, a size, a branch."""
    from cfmvit.triton_kernels import contrastive_tiles, contrastive_vectors

    recorder = Recorder()
    for module in (contrastive_tiles, contrastive_vectors):
        for name in dir(module):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, recorder.kernel(name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode(), recorder:
        yield recorder


def features(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    empty = lambda *shape, dtype: torch.empty(shape, dtype=dtype, device="cuda")
    return empty(rows, width, dtype=dtype), empty(rows, width, dtype=dtype), empty(dtype=torch.float32)


def step(rows: int, width: int, dtype: torch.dtype, recorder: Recorder) -> tuple[list[str], list[str]]:
    """Launches of the forward and of the backward of a symmetric mean loss, as cfmvit.ops.info_nce composes it."""
    from cfmvit.triton_kernels import contrastive

    image, text, scale = features(rows, width, dtype)
    recorder.launches.clear()
    positive, image_lse, text_lse, *_ = contrastive.contrastive_lse(image, text, scale, 0)
    loss = contrastive.pair_loss(positive, image_lse, text_lse, 0.5, 0.5, True)
    forward = recorder.launches.copy()
    recorder.launches.clear()
    grads = contrastive.pair_loss_backward(loss, positive, image_lse, text_lse, 0.5, 0.5, True)
    contrastive.contrastive_lse_backward(image, text, scale, 0, image_lse, text_lse, *grads, True, True)
    return forward, recorder.launches.copy()


FORWARD = ["pair_kernel", "lse_fwd_kernel", "merge_kernel", "pair_loss_kernel"]
BACKWARD = [
    "pair_loss_bwd_kernel", "lse_bwd_kernel", "aten.mm.dtype", "aten.mm.dtype", "finish_kernel", "total_kernel"
]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 100, 4096])
def test_small_batches_take_four_and_six_launches(rows: int, recorder: Recorder) -> None:
    assert step(rows, 512, torch.bfloat16, recorder) == (FORWARD, BACKWARD)


def test_other_dtypes(recorder: Recorder) -> None:
    of_float32 = [name.replace("mm.dtype", "mm.default") for name in BACKWARD]
    assert step(4096, 512, torch.float32, recorder) == (FORWARD, of_float32)
    scaled = [BACKWARD[0], "store_scale_kernel", *BACKWARD[1:]]
    assert step(4096, 512, torch.float16, recorder) == (FORWARD, scaled)


def test_large_batches_go_strip_by_strip(recorder: Recorder) -> None:
    forward, backward = step(131072, 768, torch.bfloat16, recorder)
    assert forward.count("lse_fwd_kernel") == 16
    assert forward.count("merge_kernel") == 16 + 1
    strips = backward.count("lse_bwd_kernel")
    assert strips == 131072 // 1024
    assert backward.count("finish_kernel") == strips
    assert len(backward) == 2 + 4 * strips
    assert len(forward) == 2 + 2 * 16 + 1


def test_siglip_takes_five_launches_with_its_gradients(recorder: Recorder) -> None:
    from cfmvit.triton_kernels import contrastive

    image, text, scale = features(4096, 512, torch.bfloat16)
    recorder.launches.clear()
    contrastive.sigmoid_loss(image, text, scale, scale, 0, True, True)
    assert recorder.launches == ["sigmoid_kernel", *BACKWARD[2:]]


def test_siglip_and_blocks_of_other_ranks_read_nothing_back(recorder: Recorder) -> None:
    from cfmvit.triton_kernels import contrastive

    image, text, scale = features(300, 100, torch.float16)
    contrastive.sigmoid_loss(image, text, scale, scale, 0, True, True)
    contrastive.sigmoid_loss(image, text, scale, scale, None, True, False)
    groups = torch.empty(300, dtype=torch.int64, device="cuda")
    _, image_lse, text_lse, *_ = contrastive.contrastive_lse(image, text, scale, None, groups, groups)
    none = image_lse.new_empty(0)
    contrastive.contrastive_lse_backward(
        image, text, scale, None, image_lse, text_lse, none, image_lse, text_lse, False, True, True
    )


def test_the_record_would_show_a_wait(recorder: Recorder) -> None:
    with pytest.raises(Exception, match="_local_scalar_dense"):
        features(3, 4, torch.float32)[2].item()
    assert torch.ones(3, device="cuda").device.type == "cuda"
    assert recorder.launches[-1].startswith("aten.ones")
