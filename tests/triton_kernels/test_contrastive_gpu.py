"""The Triton route on a GPU: exact, the same bits on every run, in a CUDA graph, under torch.compile, within its memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops import info_nce, siglip_loss
from cfmvit.ops.contrastive import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]


def pairs(rows: int, width: int, cosine: float, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Unit features whose pairs have about the given cosine."""
    generator = torch.Generator("cuda").manual_seed(rows + width)
    image, noise = F.normalize(torch.randn(2, rows, width, generator=generator, device="cuda"), dim=-1)
    return image.to(dtype), F.normalize(cosine * image + (1 - cosine**2) ** 0.5 * noise, dim=1).to(dtype)


def step(loss_fn, image: Tensor, text: Tensor, scale: float | Tensor, **options) -> list[Tensor]:
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    leaves = [
        x.detach().clone().requires_grad_()
        for x in (image, text, torch.as_tensor(scale, device="cuda").to(dtype))
    ]
    loss = loss_fn(*leaves, **options)
    (100 * loss).backward()  # as under a GradScaler
    return [loss.detach(), *(x.grad for x in leaves)]


def eager_clip(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits, labels = scale * image @ text.T, torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("scale", [14.3, 30.0, 100.0])
@pytest.mark.parametrize("cosine", [0.2, 0.3, 0.5])
@pytest.mark.parametrize("rows", [1000, 2048])
def test_trained_pairs_are_at_least_as_exact_as_eager_autocast(
    rows: int, cosine: float, scale: float
) -> None:
    image, text = pairs(rows, 768, cosine)
    expected = step(info_nce, image.double(), text.double(), scale, impl="reference")
    ours = step(info_nce, image, text, scale, impl="triton")
    with torch.autocast("cuda", torch.bfloat16):
        eager = step(eager_clip, image.float(), text.float(), scale)
    assert relative(ours[0], expected[0]) < 1e-4
    for a, e, x in zip(ours[1:3], eager[1:3], expected[1:3], strict=True):
        assert relative(a, x) <= relative(e, x)
    assert relative(ours[3], expected[3]) <= max(relative(eager[3], expected[3]), 1e-3)
    positive = (image.double() * text.double()).sum(1) * scale
    others = (scale * image.double() @ text.double().T).fill_diagonal_(float("-inf")).logsumexp(1)
    if float(torch.sigmoid(positive - others).mean()) > 0.99:
        assert all(relative(a, x) < 2e-3 for a, x in zip(ours[1:3], expected[1:3], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (130, 100), (513, 77)], ids=str)
@pytest.mark.parametrize("loss", [info_nce, siglip_loss])
def test_odd_sizes_and_views(loss, rows: int, width: int, dtype: torch.dtype) -> None:
    image, text = pairs(rows, width, 0.3, dtype)
    expected = step(loss, image.double(), text.double(), 20.0, impl="reference")
    tolerance = {torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    padded = torch.full((2 * rows, width + 3), float("nan"), dtype=dtype, device="cuda")
    padded[::2, 3:] = image
    for found, x in zip(step(loss, padded[::2, 3:], text, 20.0, impl="triton"), expected, strict=True):
        torch.testing.assert_close(found.double(), x, rtol=0, atol=tolerance * float(x.abs().max()) + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", [info_nce, siglip_loss])
def test_many_blocks_are_as_exact_as_one(loss, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over blocks are in float32: eighteen of them and one of all differ by their order alone, far below the dtype's ulp."""
    from cfmvit.triton_kernels import contrastive_config

    image, text = pairs(1400, 64, 0.3, dtype)
    whole = step(loss, image, text, 20.0)
    monkeypatch.setattr(contrastive_config, "SMALL_BATCH", 0)
    monkeypatch.setattr(contrastive_config, "FORWARD_ROWS", 128)
    monkeypatch.setattr(contrastive_config, "WORKSPACE_BYTES", 256 * 512 * dtype.itemsize)
    for found, x in zip(step(loss, image, text, 20.0), whole, strict=True):
        assert (
            relative(found, x.double())
            < {torch.float32: 1e-5, torch.float16: 2e-4, torch.bfloat16: 1e-3}[dtype]
        )


@pytest.mark.parametrize("loss", [info_nce, siglip_loss])
def test_tf32_where_pytorch_allows_it(loss, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = pairs(600, 96, 0.3, torch.float32)
    expected = step(loss, image.double(), text.double(), 20.0, impl="reference")
    exact = step(loss, image, text, 20.0)
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    rounded = step(loss, image, text, 20.0)
    assert not torch.equal(exact[1], rounded[1])
    for a, b, x in zip(exact[1:], rounded[1:], expected[1:], strict=True):
        assert relative(a, x) < 2e-5
        assert relative(b, x) < 1e-3


@pytest.mark.parametrize("loss", [info_nce, siglip_loss])
def test_same_bits_on_ten_runs(loss) -> None:
    image, text = pairs(5000, 512, 0.3)
    first = step(loss, image, text, 30.0)
    for _ in range(9):
        assert all(torch.equal(a, b) for a, b in zip(step(loss, image, text, 30.0), first, strict=True))


@pytest.mark.parametrize("loss_fn", [info_nce, siglip_loss])
def test_in_a_cuda_graph(loss_fn) -> None:
    image, text = pairs(512, 256, 0.3)
    leaves = [x.requires_grad_() for x in (image, text, torch.tensor(20.0, device="cuda"))]
    run = lambda: torch.autograd.grad(loss_fn(*leaves), leaves)
    expected = run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for x in captured:
        x.fill_(float("nan"))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_compiled() -> None:
    compiled = torch.compile(info_nce, fullgraph=True, dynamic=True)
    for rows in (100, 356):
        image, text = pairs(rows, 64, 0.3)
        for a, b in zip(step(compiled, image, text, 20.0), step(info_nce, image, text, 20.0), strict=True):
            torch.testing.assert_close(a, b)


def test_autocast_takes_its_dtype() -> None:
    image, text = pairs(300, 64, 0.3, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        found = step(info_nce, image, text, 20.0)
    rounded = step(info_nce, image.bfloat16(), text.bfloat16(), 20.0)
    assert torch.equal(found[0], rounded[0])
    assert found[1].dtype == torch.float32


@pytest.mark.parametrize("loss", [info_nce, siglip_loss])
def test_memory_stays_within_its_workspace(loss) -> None:
    image, text = pairs(32768, 128, 0.3)
    step(loss, image[:256], text[:256], 30.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(loss, image, text, 30.0)
    assert torch.cuda.max_memory_allocated() - before < 600 * 2**20  # the logits would take 4096 in float32


def test_more_logits_than_int32_counts() -> None:
    """131,072 pairs: the last rows' losses are those that a loss of these rows alone, against all texts, has."""
    image, text = pairs(131072, 32, 0.3)
    scale = torch.tensor(20.0, device="cuda")
    losses = info_nce(image, text, scale, direction="image_to_text", reduction="none")
    last = torch.arange(131072 - 64, 131072, device="cuda")
    logits = scale * image[last].double() @ text.double().T
    expected = F.cross_entropy(logits, last, reduction="none")
    torch.testing.assert_close(losses[last].double(), expected, rtol=1e-5, atol=1e-5)
    leaves = [x.requires_grad_() for x in (image, text)]
    grads = torch.autograd.grad(info_nce(*leaves, scale, reduction="sum"), leaves)
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("lengths", [1.0, 12.0])
def test_features_of_any_length(lengths: float) -> None:
    image, text = pairs(300, 64, 0.3, torch.float32)
    image = image * torch.linspace(0.01, lengths, 300, device="cuda")[:, None]
    expected = reference.info_nce(image.double(), text.double() * 8, torch.tensor(30.0, device="cuda"))
    found = info_nce(image, text * 8, torch.tensor(30.0, device="cuda"))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)
