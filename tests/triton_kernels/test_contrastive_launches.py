"""What the Triton route asks of a device, on tensors without data: how many launches, and never to wait for a result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

# Operators that launch nothing.
FREE = {
    "aten.empty.memory_format",
    "aten.new_empty.default",
    "aten.empty_like.default",
    "aten.detach.default",
}


class Recorder(TorchDispatchMode):
    """Writes down every launch, of PyTorch's operators and of the Triton kernels replaced by `kernel`, and the most memory
    that tensors made meanwhile held at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.start()

    def start(self) -> None:
        self.launches: list[str] = []
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # These return what they are given to write to; their form on tensors without data is not in every torch.
        out = kwargs["out"] if func._overloadname == "dtype_out" else func(*args, **kwargs)
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            return out  # a view
        if str(func) not in FREE and func.namespace != "prim":
            self.launches.append(str(func))
        self.storages = {key: x for key, x in self.storages.items() if not x[0].expired()}
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self.storages.values()))
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
    from cfmvit.triton_kernels import (
        contrastive_config,
        contrastive_lse,
        contrastive_sigmoid,
        contrastive_vector_kernels,
    )

    recorder = Recorder()
    for module in (contrastive_lse, contrastive_sigmoid, contrastive_vector_kernels):
        for name in dir(module):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, recorder.kernel(name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(contrastive_config, "multiprocessors_of", lambda features: 132)
    with FakeTensorMode(), recorder:
        yield recorder


def features(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    empty = lambda *shape, dtype: torch.empty(shape, dtype=dtype, device="cuda")
    return empty(rows, width, dtype=dtype), empty(rows, width, dtype=dtype), empty(dtype=torch.float32)


def step(rows: int, width: int, dtype: torch.dtype, recorder: Recorder) -> tuple[list[str], list[str]]:
    """Launches of the forward and of the backward of a symmetric mean loss, as cfmvit.ops.info_nce composes it."""
    from cfmvit.triton_kernels import contrastive

    image, text, scale = features(rows, width, dtype)
    recorder.start()
    loss, *vectors = contrastive.info_nce(image, text, scale, 0, 0.5, 0.5, True)
    forward = recorder.launches
    recorder.start()
    contrastive.info_nce_backward(loss, image, text, scale, 0, *vectors, True, True)
    return forward, recorder.launches


FORWARD = ["lse_fwd_kernel", "merge_pair_loss_kernel"]
BACKWARD = ["lse_bwd_kernel", "aten.mm.dtype_out", "aten.mm.dtype_out", "finish_kernel"]


@pytest.mark.parametrize("rows", [1, 100, 1024])
def test_small_batches_take_six_launches(rows: int, recorder: Recorder) -> None:
    assert step(rows, 512, torch.bfloat16, recorder) == (FORWARD, BACKWARD)


def test_beyond_them_sums_are_merged_by_many_programs(recorder: Recorder) -> None:
    forward = ["lse_fwd_kernel", "merge_kernel", "pair_loss_kernel"]
    assert step(1025, 512, torch.bfloat16, recorder) == (forward, BACKWARD)


def test_other_dtypes(recorder: Recorder) -> None:
    of_float32 = [name.replace("mm.dtype_out", "mm.out") for name in BACKWARD]
    assert step(1024, 512, torch.float32, recorder) == (FORWARD, of_float32)
    scaled = ["store_scale_kernel", *BACKWARD]
    assert step(1024, 512, torch.float16, recorder) == (FORWARD, scaled)


def test_rows_that_descriptors_can_not_describe_are_copied_once(recorder: Recorder) -> None:
    copies = ["aten.copy_.default"] * 2
    forward, backward = step(100, 100, torch.bfloat16, recorder)
    assert forward == copies + FORWARD
    assert backward == copies + BACKWARD


def test_large_batches_go_block_by_block(recorder: Recorder) -> None:
    forward, backward = step(131072, 768, torch.bfloat16, recorder)
    assert forward.count("lse_fwd_kernel") == 16
    assert forward.count("merge_kernel") == 16 + 1
    blocks = backward.count("lse_bwd_kernel")
    rows, cols = 12, 12  # of blocks: 131,072 / 11,008, rounded up
    assert blocks == rows * cols
    assert backward.count("aten.mm.dtype_out") == rows + cols  # the others add to what is there
    assert backward.count("finish_kernel") == rows
    assert backward.count("aten.sum.IntList_out") == 2 * blocks  # sums of rows and of columns
    assert len(backward) == 5 * blocks + rows
    assert len(forward) == 2 * 16 + 1 + 1


def waves(pairs: int, width: int, shape: tuple[int, int], multiprocessors: int) -> tuple[float, int]:
    """What both products of all blocks need and take, in waves of tiles of 128 x 256 on so many multiprocessors."""
    sizes = [min(size, pairs - first) for size in shape for first in range(0, pairs, size)]
    tiles = [-(-size // 128) * -(-width // 256) for size in sizes]
    return sum(tiles) / multiprocessors, sum(-(-n // multiprocessors) for n in tiles)


@pytest.mark.parametrize("width", [512, 768, 1024])
@pytest.mark.parametrize("pairs", [16384, 32768, 65536, 100_000])
def test_blocks_take_whole_waves(pairs: int, width: int) -> None:
    from cfmvit.triton_kernels.contrastive_feature_gradients import block_shape

    elements = 2**27
    for multiprocessors in (108, 132, 148):
        shape = block_shape(pairs, pairs, width, elements, 128, multiprocessors)
        assert shape[0] * shape[1] <= elements
        needed, taken = waves(pairs, width, shape, multiprocessors)
        assert taken <= waves(pairs, width, (8192, 16384), multiprocessors)[1]
        assert multiprocessors != 132 or needed / taken > 0.96


@pytest.mark.parametrize(
    ("images", "texts", "width", "elements", "shape"),
    [
        (32768, 32768, 768, 2**27, (11008, 11008)),  # as many waves as 11,264 rows take
        (4096, 4096, 768, 2**27, (4096, 4096)),
        (300, 90, 24, 25_600, (256, 90)),
        (5, 7, 8, 10, (5, 7)),
    ],
    ids=str,
)
def test_blocks_fit(images: int, texts: int, width: int, elements: int, shape: tuple[int, int]) -> None:
    from cfmvit.triton_kernels.contrastive_feature_gradients import block_shape

    assert block_shape(images, texts, width, elements, 128, 132) == shape


GIB = 2**30
WORKSPACE = GIB // 4


@pytest.mark.parametrize(
    ("rows", "width"), [(32768, 768), (65536, 512), (65536, 768), (131072, 1024)], ids=str
)
def test_memory_over_the_inputs(rows: int, width: int, recorder: Recorder) -> None:
    """One workspace, never two; besides it the gradients, the sum of the texts' in float32, and some rows of the images'."""
    from cfmvit.triton_kernels import contrastive

    image, text, scale = features(rows, width, torch.bfloat16)
    recorder.start()
    _, of_rows, _, of_cols, *_ = contrastive.contrastive_lse(image, text, scale, 0)
    assert recorder.peak_bytes < WORKSPACE  # partial sums of a row block
    recorder.start()
    args = (image, text, scale, 0, of_rows, of_cols, of_rows, of_rows, of_cols)
    contrastive.contrastive_lse_backward(*args, True, True)
    gradients, texts = 2 * image.nbytes, 2 * image.nbytes
    residuals = 8 * (2 * rows * 16 + 2 * WORKSPACE // 256)  # two sums, of all by block; of a block by tile
    assert recorder.peak_bytes < WORKSPACE + gradients + texts + residuals + GIB // 16
    if rows * width <= 65536 * 768:
        assert recorder.peak_bytes < 1.5e9
    recorder.start()
    contrastive.contrastive_lse_backward(*args, False, False)
    assert recorder.peak_bytes < GIB // 64
    recorder.start()
    contrastive.sigmoid_loss(image, text, scale, scale, 0, True, True)
    assert recorder.peak_bytes < WORKSPACE + 2 * gradients + texts + GIB // 16


def test_frozen_towers_skip_their_product(recorder: Recorder) -> None:
    from cfmvit.triton_kernels import contrastive

    image, text, scale = features(300, 64, torch.bfloat16)
    vector = torch.empty(300, device="cuda")
    for loss, args in (
        (contrastive.contrastive_lse_backward, (0, *[vector] * 5)),
        (contrastive.sigmoid_loss, (scale, 0)),
    ):
        for needed in ((True, True), (True, False), (False, True), (False, False)):
            recorder.start()
            loss(image, text, scale, *args, *needed)
            assert recorder.launches.count("aten.mm.dtype_out") == sum(needed)


@pytest.mark.parametrize(
    "allow",
    [
        "torch.set_float32_matmul_precision('high')",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_float32_follows_pytorch(allow: str) -> None:
    """However TF32 is allowed: PyTorch's older question raises after the newer answers. In a process of its own, as it stays so."""
    code = f"""if True:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        from cfmvit.triton_kernels.contrastive_config import precision_of
        with FakeTensorMode():
            x = torch.empty(3, 4, device="cuda")
        print(precision_of(x))
        {allow}
        print(precision_of(x), precision_of(x.bfloat16()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["ieee", "tf32", "ieee"], done.stderr


def test_tf32_takes_one_launch_to_round(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfmvit.triton_kernels import contrastive_config

    monkeypatch.setattr(contrastive_config, "precision_of", lambda features: "tf32")
    forward, backward = step(1024, 512, torch.float32, recorder)
    assert forward == ["round_kernel", *FORWARD]
    assert backward.count("round_kernel") == 1


def test_siglip_takes_four_launches_with_its_gradients(recorder: Recorder) -> None:
    from cfmvit.triton_kernels import contrastive

    image, text, scale = features(4096, 512, torch.bfloat16)
    recorder.start()
    contrastive.sigmoid_loss(image, text, scale, scale, 0, True, True)
    assert recorder.launches == ["sigmoid_kernel", *BACKWARD[1:]]


def test_siglip_and_blocks_of_other_ranks_read_nothing_back(recorder: Recorder) -> None:
    from cfmvit.triton_kernels import contrastive

    image, text, scale = features(300, 100, torch.float16)
    contrastive.sigmoid_loss(image, text, scale, scale, 0, True, True)
    contrastive.sigmoid_loss(image, text, scale, scale, None, True, False)
    groups = torch.empty(300, dtype=torch.int64, device="cuda")
    _, rows, _, cols, *_ = contrastive.contrastive_lse(image, text, scale, None, groups, groups)
    none = rows.new_empty(0)
    contrastive.contrastive_lse_backward(
        image, text, scale, None, rows, cols, none, rows, cols, False, True, True
    )


def test_the_record_would_show_a_wait(recorder: Recorder) -> None:
    with pytest.raises(Exception, match="_local_scalar_dense"):
        features(3, 4, torch.float32)[2].item()
    assert torch.ones(3, device="cuda").device.type == "cuda"
    assert recorder.launches[-1].startswith("aten.ones")
