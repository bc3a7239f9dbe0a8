"""Every op where sizes are open: chosen by masks at run time under ``torch.compile``, dynamic under ``torch.export``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cfmvit import ops
from tests.ops.samples import Sample, Sizes, public

SAMPLES = public(torch.float32)
OTHERS = public(
    torch.float32,
    Sizes(batch=5, tokens=10, visible=4, images=4, patches=3, boxes=6, labels=7, pairs=6),
)
# Other options take the same way through a graph, and time.
ALIKE = ("none", "all", "adaptive", "normalize", "local", "stats")
each = pytest.mark.parametrize(
    ("sample", "other"),
    [
        pytest.param(sample, other, id=str(sample), marks=[pytest.mark.long] * (sample.label in ALIKE))
        for sample, other in zip(SAMPLES, OTHERS, strict=True)
    ],
)
ROOM = 12  # of every open size, before a mask chooses


def tensors(sample: Sample) -> dict[str, Tensor]:
    return {**sample.values, **sample.indices}


def open_dims(sample: Sample) -> list[tuple[str, int, str]]:
    """Tensor, dimension and letter of each size that is left open."""
    return [
        (name, dim, letter)
        for name, shape in sample.shapes.items()
        for dim, letter in enumerate(shape)
        if letter.isupper()
    ]


def hidden(sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors among what is no number or no index, and masks that choose them, one for each letter."""
    found, masks = tensors(sample), {}
    generator = torch.Generator().manual_seed(1)
    for name, dim, letter in open_dims(sample):
        x = found[name]
        if letter not in masks:
            masks[letter] = torch.zeros(ROOM, dtype=torch.bool)
            masks[letter][torch.randperm(ROOM, generator=generator)[: x.shape[dim]]] = True
        shape = [*x.shape[:dim], ROOM, *x.shape[dim + 1 :]]
        room = x.new_full(shape, float("nan") if x.is_floating_point() else 77)
        found[name] = room.index_copy(dim, masks[letter].nonzero()[:, 0], x)
    return found, masks


class Chosen(nn.Module):
    """A sample's call with what masks choose of its arguments."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, found: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        found = dict(found)
        for name, dim, letter in open_dims(self.sample):
            found[name] = found[name][(*[slice(None)] * dim, masks[letter])]
        values = [found[name] for name in self.sample.values]
        indices = {name: found[name] for name in self.sample.indices}
        return self.sample(*values, indices=indices)


def outcome(
    run: nn.Module, sample: Sample, found: dict[str, Tensor], masks: dict[str, Tensor]
) -> list[Tensor]:
    """The result, and its gradients where it has some."""
    leaves = {name: x.requires_grad_() if name in sample.values else x for name, x in found.items()}
    out = run(leaves, masks)
    wanted = [leaves[name] for name in sample.values]
    return [
        out,
        *(torch.autograd.grad(out.sum(), wanted, materialize_grads=True) if out.requires_grad else []),
    ]


def test_every_tensor_of_a_sample_has_its_shape() -> None:
    for sample in SAMPLES + OTHERS:
        sizes: dict[str, int] = {}
        for name, x in tensors(sample).items():
            assert len(sample.shapes[name]) == x.dim(), (str(sample), name)
            for letter, size in zip(sample.shapes[name], x.shape, strict=True):
                assert sizes.setdefault(letter, size) == size, (str(sample), name)
        assert sample.shapes.keys() == tensors(sample).keys()
    for sample, other in zip(SAMPLES, OTHERS, strict=True):
        assert open_dims(sample), f"{sample} leaves no size open"
        for name, dim, _ in open_dims(sample):
            assert 1 < tensors(sample)[name].shape[dim] != tensors(other)[name].shape[dim] < ROOM


@each
def test_sizes_known_only_at_run_time_compile_in_one_graph(sample: Sample, other: Sample) -> None:
    torch._dynamo.reset()
    plain = Chosen(sample)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, error_on_recompile=True):
        compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
        for some in (sample, other):
            found, masks = hidden(some)
            outs, expected = (outcome(run, some, found, masks) for run in (compiled, plain))
            torch.testing.assert_close(outs, expected)
            torch.testing.assert_close(outs[0], some())
        letter = "R" if "R" in masks else "B"  # boxes name images, which must be there
        if sample.op not in ("info_nce", "siglip_loss"):  # which refuse no pairs
            none = {**masks, letter: torch.zeros_like(masks[letter])}
            outs, expected = (outcome(run, other, found, none) for run in (compiled, plain))
            torch.testing.assert_close(outs, expected)


@pytest.mark.parametrize(
    "name", ["masked_cosine_loss-weight", "linear_masked_cosine_loss", "masked_pixel_loss"]
)
def test_graphs_that_break_at_a_mask_go_on_after_it(name: str) -> None:
    """As torch.compile does where nothing is asked of it."""
    torch._dynamo.reset()
    sample, other = next(pair for pair in zip(SAMPLES, OTHERS, strict=True) if str(pair[0]) == name)
    plain = Chosen(sample)
    compiled = torch.compile(plain, backend="aot_eager")
    for some in (sample, other):
        found, masks = hidden(some)
        outs, expected = (outcome(run, some, found, masks) for run in (compiled, plain))
        torch.testing.assert_close(outs, expected)


def test_sizes_that_disagree_are_refused_at_run_time() -> None:
    def scores(x: Tensor, some: Tensor, others: Tensor) -> Tensor:
        return ops.score_regions(x[some], x, vlm_embeds=x[others])

    torch._dynamo.reset()
    some, x = torch.tensor([True, True, False]), torch.eye(3)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(scores, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, some, some.flip(0)), scores(x, some, some.flip(0)))
        with pytest.raises(RuntimeError, match="Runtime assertion failed"):
            compiled(x, some, ~some)


@each
def test_an_export_runs_at_other_sizes(sample: Sample, other: Sample) -> None:
    class Call(nn.Module):
        def forward(self, found: dict[str, Tensor]) -> Tensor:
            values = [found[name] for name in sample.values]
            return sample(*values, indices={name: found[name] for name in sample.indices})

    # DYNAMIC refuses a size that turns out to be a constant.
    dims: dict[str, dict[int, object]] = {name: {} for name in sample.shapes}
    for name, dim, _ in open_dims(sample):
        dims[name][dim] = torch.export.Dim.DYNAMIC
    dims = {name: dims[name] for name in tensors(sample)}
    exported = torch.export.export(Call(), (tensors(sample),), dynamic_shapes=(dims,)).module()
    for some in (sample, other):
        torch.testing.assert_close(exported(tensors(some)), some())
