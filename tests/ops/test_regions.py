"""roi_align: torchvision's numbers, gradients, layouts, degenerate and hostile boxes, size."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops import multilevel_roi_align, pool_regions, roi_align

from .families import TOLERANCES, assert_parity, assert_same_bits, moved

B, H, W = 2, 13, 17
LAYOUTS = ("contiguous", "channels_last", "tokens", "expanded", "every_other")
SAMPLING = list(itertools.product((-1, 1, 2, 3), (False, True)))
NAN, INF = float("nan"), float("inf")


def feature_map(channels: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, channels, H, W, generator=generator, dtype=torch.float64).to(device, dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Give (B, C, H, W) other strides, differentiably; gaps hold NaN."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        return x[:1].expand(B, -1, -1, -1)
    if layout == "tokens":  # a class token before the grid, channels cut out of wider tokens
        tokens = F.pad(x.flatten(2).transpose(1, 2), (3, 0, 1, 0), value=NAN)
        return tokens[:, 1:, 3:].transpose(1, 2).unflatten(2, (H, W))
    if layout == "every_other":
        return torch.stack([torch.full_like(x, NAN), x], -1).flatten(3)[..., 1::2]
    return x


def random_rois(count: int, dtype: torch.dtype, device: str = "cpu", inverted: bool = False) -> Tensor:
    """Boxes in, across and beyond a map twice as large as H x W, tiny to larger than it; (R, 5)."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40 - 6
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 3 * 50
    other = corner - size if inverted else corner + size
    image = torch.randint(0, B, (count, 1), generator=generator)
    return torch.cat([image, corner, other], 1).to(device, dtype)


def both_passes(function, x: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    out = function(leaf, *arguments)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (grad,) = torch.autograd.grad(out, leaf, upstream.to(out))
    return out.detach(), grad


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sampling_ratio, aligned", SAMPLING)
def test_equals_torchvision(
    sampling_ratio: int,
    aligned: bool,
    dtype: torch.dtype,
    layout: str,
    impl: str,
    device: str,
    torchvision: ModuleType,
) -> None:
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    for channels, count in ((1, 2), (5, 40), (80, 40)):  # a partial block of channels; a full one and a rest
        x, rois = laid_out(feature_map(channels, dtype, device), layout), random_rois(count, dtype, device)
        arguments = (rois, (5, 3), 0.5, sampling_ratio, aligned)
        expected = both_passes(torchvision.ops.roi_align, x, *arguments)
        actual = both_passes(lambda *a: roi_align(*a, impl=impl), x, *arguments)
        for a, e in zip(actual, expected):
            torch.testing.assert_close(a, e, rtol=0, atol=tolerance * max(1.0, float(e.abs().max())))


@pytest.mark.parametrize("sampling_ratio, aligned", SAMPLING)
def test_float16_is_no_worse_than_torchvisions(
    sampling_ratio: int, aligned: bool, device: str, torchvision: ModuleType
) -> None:
    """torchvision computes coordinates and sums in half; judge both by float64 on the same numbers."""
    x, rois = feature_map(20, torch.float16, device), random_rois(40, torch.float16, device)
    truth = torchvision.ops.roi_align(x.double(), rois.double(), 4, 0.5, sampling_ratio, aligned)
    theirs = torchvision.ops.roi_align(x, rois, 4, 0.5, sampling_ratio, aligned).double() - truth
    ours = roi_align(x, rois, 4, 0.5, sampling_ratio, aligned).double() - truth
    assert ours.norm() <= theirs.norm()
    assert ours.abs().max() < 2e-3


@pytest.mark.parametrize("sampling_ratio, aligned", SAMPLING)
@pytest.mark.parametrize("inverted", [False, True], ids=["empty", "inverted"])
def test_boxes_without_area_as_torchvision(
    inverted: bool, sampling_ratio: int, aligned: bool, device: str, torchvision: ModuleType
) -> None:
    x, rois = feature_map(5, device=device), random_rois(30, torch.float64, device, inverted)
    if not inverted:
        rois[:, 3:] = rois[:, 1:3]
    arguments = (rois, 4, 0.5, sampling_ratio, aligned)
    expected = both_passes(torchvision.ops.roi_align, x, *arguments)
    for a, e in zip(both_passes(roi_align, x, *arguments), expected):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 16, 31, 33, 64, 97])
def test_parity_with_float64(channels: int, layout: str, dtype: torch.dtype, device: str) -> None:
    rois = random_rois(50, torch.float32, device)

    def make(impl: str):
        return lambda x: roi_align(laid_out(x, layout), rois, (3, 4), 0.5, 2, True, impl=impl)

    assert_parity(make, [feature_map(channels)], dtype, device)


def test_result_keeps_the_layout_of_channels(device: str) -> None:
    rois = random_rois(4, torch.float32, device)
    for layout, channels_last in (("contiguous", False), ("channels_last", True), ("tokens", True)):
        x = laid_out(feature_map(8, torch.float32, device), layout).requires_grad_()
        out = roi_align(x, rois, 3)
        (grad,) = torch.autograd.grad(out.sum(), x)  # an expanded upstream gradient
        for result in (out, grad):
            assert result.is_contiguous(memory_format=torch.channels_last) is channels_last
            assert result.is_contiguous() is not channels_last


def test_lists_of_boxes_and_float_types_of_boxes(device: str) -> None:
    x, rois = feature_map(5, torch.float32, device), random_rois(12, torch.float32, device).round()
    rois = rois[rois[:, 0].argsort(stable=True)]
    split = [rois[rois[:, 0] == image, 1:] for image in range(B)]
    expected = roi_align(x, rois, 2)
    for dtype in TOLERANCES:  # whole numbers up to 90 are exact in each
        torch.testing.assert_close(roi_align(x, [boxes.to(dtype) for boxes in split], 2), expected)
        torch.testing.assert_close(roi_align(x, rois.to(dtype), 2), expected)
    # 300.3 in bfloat16 is 300: boxes are not rounded to the features' dtype.
    fine = torch.tensor([[0, 4.3, 4.3, 9.7, 9.7]], device=device)
    ours = roi_align(x.bfloat16(), fine, 2, aligned=True).float()
    torch.testing.assert_close(
        ours, roi_align(x.bfloat16().float(), fine, 2, aligned=True), atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_hostile_boxes(impl: str, device: str) -> None:
    x = feature_map(5, torch.float32, device)
    values = (NAN, INF, -INF, 3e38, -3e38, 1e30, -1e9, 1e5, 0.0, 7.5)
    boxes = torch.tensor(list(itertools.product(values, repeat=4)), device=device)
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
    finite = boxes.isfinite().all(1)
    for sampling_ratio, aligned in ((2, True), (2, False), (-1, True)):
        some = rois[:: 1 if sampling_ratio > 0 else 37]
        out, grad = both_passes(
            lambda *a: roi_align(*a, impl=impl),
            x,
            some,
            (2, 3),
            1e6 if aligned else 0.5,
            sampling_ratio,
            aligned,
        )
        assert out.isfinite().all()
        assert grad.isfinite().all()
        assert not out[~finite[:: 1 if sampling_ratio > 0 else 37]].any()


def test_values_that_are_not_read_do_not_matter(device: str) -> None:
    x, rois = feature_map(5, torch.float32, device), torch.tensor([[0, 4.0, 4, 8, 8]], device=device)
    expected = roi_align(x, rois, 2, aligned=True)
    x[:, :, :3] = NAN
    x[1] = INF
    torch.testing.assert_close(roi_align(x, rois, 2, aligned=True), expected)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.bfloat16, 256), (torch.float16, 2048)], ids=str)
def test_image_numbers_that_a_dtype_of_boxes_rounds_are_refused(
    dtype: torch.dtype, exact: int, impl: str, device: str
) -> None:
    """torchvision reads the image that a number is rounded to."""
    images = torch.arange(exact + 2.0, device=device).view(-1, 1, 1, 1)
    last = torch.tensor([[exact, 0, 0, 1, 1]], device=device).to(dtype)
    assert float(roi_align(images[:-1], last, 1, impl=impl)) == exact
    tokens, options = images.flatten(2), {"grid_size": (1, 1), "spatial_scale": 1.0}
    for run in (
        lambda boxes: roi_align(images, boxes, 1, impl=impl),
        lambda boxes: multilevel_roi_align([images], boxes, 1, strides=(4,), impl=impl),
        lambda boxes: pool_regions(tokens, boxes, **options, impl=impl),
    ):
        with pytest.raises(
            ValueError, match=f"boxes must have .* numbers 0 to {exact + 1} exactly, got {dtype}"
        ):
            run(last)
        boxes = [last[:0, 1:]] * (exact + 1) + [last[:, 1:]]  # without numbers, any dtype will do
        assert float(run(boxes)) == exact + 1


def test_float32_image_numbers_have_a_limit_too(device: str) -> None:
    images = torch.zeros(1, 1, 1, 1, device=device).expand(2**24 + 2, 1, 1, 1)
    boxes = torch.zeros(1, 5, device=device)
    with pytest.raises(ValueError, match=r"boxes must have .* exactly, got torch.float32"):
        roi_align(images, boxes, 1)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_no_bins_and_scales_of_any_sign_as_torchvision(
    impl: str, device: str, torchvision: ModuleType
) -> None:
    x, rois = feature_map(5, device=device), random_rois(20, torch.float64, device)
    cases = [(size, 0.5) for size in (0, (0, 3), (2, 0))] + [(3, 0.0), (3, -0.5)]
    for (size, scale), (sampling_ratio, aligned) in itertools.product(cases, SAMPLING):
        arguments = (rois, size, scale, sampling_ratio, aligned)
        expected = both_passes(torchvision.ops.roi_align, x, *arguments)
        actual = both_passes(lambda *a: roi_align(*a, impl=impl), x, *arguments)
        for a, e in zip(actual, expected):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-13)


def test_empty_boxes_of_images_that_are_not_there(device: str, torchvision: ModuleType) -> None:
    x, boxes = feature_map(5, device=device), list(random_rois(6, torch.float64, device)[:, 1:].split(3))
    surplus = [*boxes, boxes[0][:0]]
    torch.testing.assert_close(roi_align(x, surplus, 2), torchvision.ops.roi_align(x, surplus, 2))


def test_nothing(device: str) -> None:
    for case in (
        (feature_map(5), torch.zeros(0, 5)),
        (feature_map(5), [torch.zeros(0, 4)] * B),
        (torch.zeros(0, 5, H, W), []),
        (torch.zeros(0, 5, H, W), torch.zeros(0, 5)),
        (torch.zeros(B, 0, H, W), [torch.ones(3, 4)] * B),
    ):
        x, boxes = moved(case, device)
        for impl in ("native", "reference"):
            leaf = x.detach().requires_grad_()
            out = roi_align(leaf, boxes, (2, 3), impl=impl)
            rows = len(boxes) if isinstance(boxes, Tensor) else sum(map(len, boxes))
            assert out.shape == (rows, x.shape[1], 2, 3)
            out.sum().backward()
            assert leaf.grad.shape == x.shape
            assert not leaf.grad.any()


def test_offsets_beyond_32_bits() -> None:
    """2.7e9 elements, of which the memory of a few pages is touched."""
    x = torch.empty(1, 3, 30000, 30000, dtype=torch.bfloat16)
    x[0, :, -40:, -40:] = torch.arange(3).view(3, 1, 1)
    rois = torch.tensor([[0, 29970.0, 29970, 29990, 29995]])
    expected = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 2, 2).bfloat16()
    assert torch.equal(roi_align(x, rois, 2, aligned=True), expected)
    last = x.permute(0, 3, 1, 2)[:, -40:, :, -40:]  # channels last, far from the first element
    assert torch.equal(
        roi_align(last, torch.tensor([[0, 5.0, 0, 9, 2]]), 1).unique().float(), torch.tensor([1.0])
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype, layout: str, device: str) -> None:
    rois = random_rois(70, torch.float32, device)
    assert_same_bits(
        lambda x: roi_align(laid_out(x, layout), rois, 7, 0.5, -1, True), [feature_map(200, dtype, device)]
    )


@pytest.mark.parametrize("sampling_ratio, aligned", [(2, True), (-1, False)])
def test_gradcheck(sampling_ratio: int, aligned: bool, device: str) -> None:
    x = feature_map(2, device=device)[:, :, :6, :7].contiguous().requires_grad_()
    rois = random_rois(5, torch.float64, device)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 2, 0.2, sampling_ratio, aligned), x)


def test_double_backward_is_refused() -> None:
    x = feature_map(3).requires_grad_()
    (grad,) = torch.autograd.grad(
        roi_align(x, random_rois(3, torch.float64), 2).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="roi_align: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"input": torch.zeros(2, 3, 4)}, ValueError, r"input must have 4 dimensions, got shape \(2, 3, 4\)"),
        (
            {"input": torch.zeros(2, 3, 4, 4, dtype=torch.int32)},
            TypeError,
            "input must be float32, .* got torch.int32",
        ),
        (
            {"input": torch.zeros(2, 3, 0, 4)},
            ValueError,
            r"input must have a non-empty map, got shape \(2, 3, 0, 4\)",
        ),
        ({"boxes": torch.zeros(3, 4)}, ValueError, r"boxes must have shape \(R, 5\), got \(3, 4\)"),
        (
            {"boxes": torch.zeros(3, 5, dtype=torch.int64)},
            TypeError,
            "boxes must be floating point, got torch.int64",
        ),
        ({"boxes": [torch.zeros(3, 5)] * 2}, ValueError, r"boxes must have shape \(R_i, 4\) .* got \(3, 5\)"),
        (
            {"boxes": [torch.zeros(3, 4)]},
            ValueError,
            "boxes must have one tensor for each of 2 images, got 1",
        ),
        (
            {"boxes": [[[1.0, 2, 3, 4]], [[1.0, 2, 3, 4]]]},
            TypeError,
            "boxes must be a tensor or a sequence of tensors, got list of list",
        ),
        (
            {"boxes": [torch.zeros(0, 4)] * 2 + [torch.zeros(1, 4)]},
            ValueError,
            "boxes must have one tensor for each of 2 images, got 3",
        ),
        (
            {"boxes": torch.tensor([[2.0, 0, 0, 1, 1]])},
            ValueError,
            r"image number in \[0, 2\) first, got 2",
        ),
        (
            {"boxes": torch.tensor([[-1.0, 0, 0, 1, 1]])},
            ValueError,
            r"image number in \[0, 2\) first, got -1",
        ),
        (
            {"boxes": torch.tensor([[NAN, 0, 0, 1, 1]])},
            ValueError,
            r"image number in \[0, 2\) first, got nan",
        ),
        (
            {"boxes": torch.zeros(1, 5, device="meta")},
            ValueError,
            "boxes must be on the features' device cpu, got meta",
        ),
        ({"output_size": -1}, ValueError, "output_size must be one or two integers, none negative, got -1"),
        ({"output_size": 2.0}, ValueError, "output_size must be one or two integers, .* got 2.0"),
        ({"output_size": 10**9}, ValueError, "output_size must be at most 65536, got 1000000000"),
        (
            {"output_size": (1, 300), "sampling_ratio": 300},
            ValueError,
            "sampling_ratio must give at most 65536 samples along a side of a box, got 300 in each of 1 x 300 bins",
        ),
        ({"output_size": (1, 2, 3)}, ValueError, r"output_size must be .* got \(1, 2, 3\)"),
        (
            {"sampling_ratio": 70000},
            ValueError,
            "sampling_ratio must give at most 65536 samples .* got 70000",
        ),
        ({"spatial_scale": NAN}, ValueError, "spatial_scale must be finite, got nan"),
        ({"impl": "triton"}, ValueError, "impl must be"),
    ],
)
def test_refusals(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"input": torch.zeros(2, 3, 4, 4), "boxes": torch.zeros(1, 5), "output_size": 2} | change
    with pytest.raises(error, match="roi_align: .*" + message):
        roi_align(**arguments)


def test_native_op_checks_for_itself() -> None:
    x, op = torch.zeros(2, 3, 4, 4), torch.ops.cfmvit.roi_align.default
    for arguments, message in (
        ((x[0], torch.zeros(1, 5), 1.0, 2, 2, 2, True), "input must have 4 dimensions"),
        ((x, torch.zeros(1, 4), 1.0, 2, 2, 2, True), r"boxes must have shape \(R, 5\)"),
        ((x, torch.zeros(1, 5).bfloat16(), 1.0, 2, 2, 2, True), "boxes must be float32 or float64"),
        ((x, torch.full((1, 5), 2.0), 1.0, 2, 2, 2, True), r"image number in \[0, 2\) first, got 2"),
        (
            (x, torch.zeros(1, 5), 1.0, 2, -1, 2, True),
            "output_size must be one or two integers, none negative",
        ),
        ((x, torch.zeros(1, 5), 1.0, 2, 2**62, 2, True), "output_size must be at most 65536"),
        ((x, torch.zeros(1, 5), 1.0, 2, 2**16, 2, True), "sampling_ratio must give at most 65536 samples"),
        ((x.int(), torch.zeros(1, 5), 1.0, 2, 2, 2, True), "features must be float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
