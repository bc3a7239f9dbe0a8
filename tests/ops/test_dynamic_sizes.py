"""Sizes that are symbols: known only at run time under torch.compile, and dynamic under torch.export."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit import ops

B, N, M, D, H, P = 6, 5, 3, 8, 4, 2
GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR)


def permutations(count: int) -> Tensor:
    return rand(B, count).argsort(1)


ORDER, INDEX, PATCHES = permutations(N), permutations(N)[:, :M], permutations(6)[:, :M]
TOKENS, TARGET, IMAGES = rand(B, N, D), rand(B, N, D), rand(B, 3, 2 * P, 3 * P)
WEIGHT, BIAS, POS = rand(D, H), rand(D), rand(N, D)
# Each op as a function of tensors whose first sizes, and where True their second ones too, are symbols.
CASES: dict[str, tuple[Callable[..., Any], list[tuple[Tensor, bool]]]] = {
    "random_masking": (
        lambda noise: tuple(ops.random_masking(*noise.shape, 0.5, noise=noise)),
        [(rand(B, N), True)],
    ),
    "gather_tokens": (
        lambda tokens, index, keep_pos: ops.gather_tokens(tokens, index, pos_embed=POS, keep_pos=keep_pos),
        [(TOKENS, False), (INDEX, True), (rand(B) > 0.5, False)],
    ),
    "split_tokens": (
        lambda tokens, keep, masked: ops.split_tokens(tokens, ops.Masking(keep, masked, keep)),
        [(TOKENS, True), (ORDER[:, :2], True), (ORDER[:, 2:], True)],
    ),
    "restore_tokens": (
        lambda visible, order: ops.restore_tokens(visible, BIAS, order),
        [(TOKENS[:, :2], True), (ORDER, True)],
    ),
    "gather_patches": (
        lambda images, index: ops.gather_patches(images, index, P, mean=[0.5] * 3, std=[0.5] * 3),
        [(IMAGES, False), (PATCHES, True)],
    ),
    "masked_cosine_loss": (
        lambda pred, target, index: ops.masked_cosine_loss(pred, target, index),
        [(TOKENS, True), (TARGET, True), (INDEX, True)],
    ),
    "masked_cosine_loss weighted": (
        lambda pred, target, weight: ops.masked_cosine_loss(pred, target, weight=weight),
        [(TOKENS, True), (TARGET, True), (rand(B, N), True)],
    ),
    "linear_masked_cosine_loss": (
        lambda hidden, target: ops.linear_masked_cosine_loss(hidden, WEIGHT, BIAS, target),
        [(rand(B, N, H), True), (TARGET, True)],
    ),
    "linear_masked_cosine_loss each": (
        lambda hidden, target, index: ops.linear_masked_cosine_loss(
            hidden, WEIGHT, BIAS, target, index, reduction="none"
        ),
        [(rand(B, N, H), True), (TARGET, True), (INDEX, True)],
    ),
    "masked_pixel_loss": (
        lambda pred, images, index: ops.masked_pixel_loss(pred, images, index, P),
        [(rand(B, M, 3 * P * P), True), (IMAGES, False), (PATCHES, True)],
    ),
    "masked_pixel_loss of all": (
        lambda pred, images, index: ops.masked_pixel_loss(pred, images, index, P),
        [(rand(B, 6, 3 * P * P), False), (IMAGES, False), (PATCHES, True)],
    ),
}


def run(function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Values, and gradients of the first input where it has any."""
    leaves = [inputs[0].clone().requires_grad_(), *inputs[1:]]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    smooth = [x for x in outs if x.requires_grad]
    return outs + (list(torch.autograd.grad([x.sum() for x in smooth], leaves[:1])) if smooth else [])


LOSSES = ("masked_cosine_loss weighted", "linear_masked_cosine_loss", "masked_pixel_loss")


@pytest.mark.parametrize(
    ("case", "fullgraph"), [*((case, True) for case in CASES), *((case, False) for case in LOSSES)]
)
def test_a_batch_known_only_at_run_time_compiles(case: str, fullgraph: bool) -> None:
    op, inputs = CASES[case]
    tensors = [x for x, _ in inputs]
    torch._dynamo.reset()
    some = lambda wanted, *tensors: op(*(x[wanted] for x in tensors))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=fullgraph):
        compiled = torch.compile(some, backend="aot_eager", fullgraph=fullgraph)
        for wanted in (torch.tensor([1, 0, 1, 1, 0, 1]) == 1, torch.zeros(B, dtype=torch.bool)):
            found, expected = (run(partial(function, wanted), tensors) for function in (compiled, some))
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x, y)


@pytest.mark.parametrize("case", CASES)
def test_an_export_keeps_batch_and_tokens_dynamic(case: str) -> None:
    op, inputs = CASES[case]
    model = nn.Module()
    model.forward = lambda *tensors: op(*tensors)  # type: ignore[method-assign]
    free = torch.export.Dim.DYNAMIC  # which refuses a size that turns out to be a constant
    sizes = tuple({0: free, 1: free} if tokens else {0: free} for _, tokens in inputs)
    tensors = [x.clone() for x, _ in inputs]
    exported = torch.export.export(model, tuple(tensors), dynamic_shapes=(sizes,)).module()
    few = [x[:3] for x in tensors]
    for arguments in (tensors, few):
        torch.testing.assert_close(exported(*arguments), op(*arguments))
