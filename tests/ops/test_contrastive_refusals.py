"""What info_nce and its op refuse, and that they need no Triton."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cfmvit.ops import info_nce

OP = torch.ops.cfmvit.contrastive_lse.default

GOOD = dict(image=torch.ones(4, 3), text=torch.ones(4, 3), logit_scale=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(image=torch.ones(0, 3)), ValueError, r"image must be a non-empty matrix, got shape \(0, 3\)"),
        (dict(image=torch.ones(4)), ValueError, r"image must be a non-empty matrix, got shape \(4,\)"),
        (dict(image=[1.0]), TypeError, "image must be a tensor, got list"),
        (dict(text=torch.ones(4, 3).long()), TypeError, "text must be floating point, got torch.int64"),
        (dict(text=torch.ones(4, 5)), ValueError, "text must have image's width 3, got 5"),
        (
            dict(text=torch.ones(4, 3).double()),
            TypeError,
            "text must have image's dtype torch.float32, got torch.float64",
        ),
        (dict(text=torch.ones(5, 3)), ValueError, "text must have image's 4 rows .* got 5 rows"),
        (
            dict(text=torch.ones(4, 3, device="meta")),
            ValueError,
            "text must be on image's device cpu, got meta",
        ),
        (dict(logit_scale=torch.ones(1)), ValueError, r"logit_scale must be 0-d, got shape \(1,\)"),
        (dict(logit_scale=10.0), TypeError, "logit_scale must be a floating-point tensor, got float"),
        (
            dict(logit_bias=torch.tensor(1)),
            TypeError,
            "logit_bias must be a floating-point tensor, got torch.int64",
        ),
        (dict(direction="up"), ValueError, "direction must be one of .* got 'up'"),
        (dict(reduction="avg"), ValueError, "reduction must be one of .* got 'avg'"),
        (dict(label_smoothing=1.0), ValueError, r"label_smoothing must be in \[0, 1\), got 1.0"),
        (dict(label_offset=1), ValueError, "label_offset be 0 unless direction is 'image_to_text'"),
        (dict(label_offset=-1), ValueError, "label_offset must be an integer of at least 0, got -1"),
        (
            dict(label_offset=1, direction="image_to_text"),
            ValueError,
            r"text must have at least 5 rows \(image rows \+ label_offset\), got 4",
        ),
        (
            dict(group_ids=torch.zeros(3).long()),
            ValueError,
            r"group_ids must have shape \(4,\), got shape \(3,\)",
        ),
        (dict(group_ids=torch.zeros(4)), TypeError, "group_ids must be an integer tensor, got torch.float32"),
        (
            dict(process_group=object()),
            ValueError,
            "process_group must belong to an initialised torch.distributed",
        ),
        (
            dict(impl="magic"),
            ValueError,
            "impl must be None, .triton., .native. or .reference., got .magic.",
        ),
        (
            dict(impl="triton"),
            RuntimeError,
            "impl .triton. is not available: (no Triton kernel for cpu tensors|the package triton is not installed)",
        ),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_refusals(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^info_nce: .*{message}"):
        info_nce(**{**GOOD, **change})


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: (4,)}, "image and text must be matrices of equal width, got 1-d and 2-d of width 4 and 3"),
        ({1: (4, 5)}, "image and text must be matrices of equal width, got 2-d and 2-d of width 3 and 5"),
        ({2: (1,)}, "logit_scale must be 0-d, got 1-d"),
        ({1: (3, 3)}, r"text must have at least image rows \+ label_offset rows, got 3 rows for 4 \+ 0"),
        ({4: (5,)}, "text_groups must have one id per row, got 5 for 4"),
    ],
    ids=["1-d", "width", "scale", "rows", "groups"],
)
def test_the_op_refuses_with_and_without_data(change: dict, message: str, device: str) -> None:
    shapes = {0: (4, 3), 1: (4, 3), 2: (), 4: (4,)} | change
    image, text, scale, groups = (torch.ones(shape, device=device) for shape in shapes.values())
    with pytest.raises(RuntimeError, match=f"contrastive_lse: {message}"):
        OP(image, text, scale, 0, image.new_ones(4).long(), groups.long())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": (6, 3)}, "text_weight must be 0 unless text has image's 4 rows, got 0.5 and 6 rows"),
        ({"text": (3, 3)}, r"text must have at least image rows \+ label_offset rows, got 3 rows for 4 \+ 0"),
        ({"label_offset": 1}, r"got 4 rows for 4 \+ 1"),
        ({"label_offset": 2**63 - 1}, rf"got 4 rows for 4 \+ {2**63 - 1}"),
        ({"scale": (1,)}, "logit_scale must be 0-d, got 1-d"),
    ],
    ids=["weight", "rows", "offset", "overflow", "scale"],
)
def test_the_whole_loss_refuses_with_and_without_data(change: dict, message: str, device: str) -> None:
    given = {"image": (4, 3), "text": (4, 3), "scale": (), "label_offset": 0} | change
    tensors = [torch.ones(given[name], device=device) for name in ("image", "text", "scale")]
    with pytest.raises(RuntimeError, match=f"info_nce: .*{message}"):
        torch.ops.cfmvit.info_nce.default(*tensors, given["label_offset"], 0.5, 0.5, True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("at", "shape", "message"),
    [
        (0, (1,), "grad must "),
        (1, (5,), r"image_shift must have shape \(4,\), got \(5,\)"),
        (2, (4,), r"text_shift must have shape \(6,\), got \(4,\)"),
        (3, (4, 0), r"grad_positive must have shape \(4,\), got \(4, 0\)"),
        (4, (), r"grad_image_sum must have shape \(4,\), got \(\)"),
        (5, (50_000_000, 0), r"grad_text_sum must have shape \(6,\), got \(50000000, 0\)"),
    ],
    ids=["grad", "image_shift", "text_shift", "grad_positive", "grad_image_sum", "grad_text_sum"],
)
def test_backwards_refuse_vectors_of_other_shapes(at: int, shape: tuple, message: str, device: str) -> None:
    shapes = [(), (4,), (6,), (4,), (4,), (6,)]
    shapes[at] = shape
    grad, *vectors = (torch.ones(x, device=device) for x in shapes)
    towers = (
        torch.ones(4, 3, device=device),
        torch.ones(6, 3, device=device),
        torch.ones((), device=device),
        1,
    )
    with pytest.raises(RuntimeError, match=f"info_nce_backward: {message}"):
        torch.ops.cfmvit.info_nce_backward.default(grad, *towers, *vectors, towers[2], True, True)
    if at > 0:
        with pytest.raises(RuntimeError, match=f"contrastive_lse_backward: {message}"):
            torch.ops.cfmvit.contrastive_lse_backward.default(*towers, *vectors, True, True, False)


def test_no_pairs_have_no_loss() -> None:
    with pytest.raises(RuntimeError, match=r"pair_loss: positive must not be empty, got shape \(0,\)"):
        torch.ops.cfmvit.pair_loss.default(*torch.ones(5, 0), torch.tensor(1.0), 0.5, 0.5, True)


def test_without_triton() -> None:
    """Triton is no dependency: without it the ops are there, CPU tensors take the native kernels, and others hear what is missing."""
    code = """if True:
        import sys
        sys.modules["triton"] = None  # an import of it fails
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        import cfmvit
        from cfmvit.integrations.open_clip import ClipLoss
        from cfmvit.ops import info_nce, siglip_loss
        image, scale = torch.eye(4, requires_grad=True), torch.tensor(3.0)
        for loss in (info_nce, siglip_loss, ClipLoss()):
            loss(image, image.detach(), scale).backward()
        with FakeTensorMode():
            image = torch.empty(4, 4, device="cuda")
        try:
            info_nce(image, image, image[0, 0], impl="triton")
        except RuntimeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("impl 'triton' is not available: the package triton is not installed\n"), (
        done.stderr
    )
