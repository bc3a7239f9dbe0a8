"""The short way to call a native op gives what the dispatcher gives, and gives way to whoever traces or transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from cfmvit import ops
from cfmvit.bench import registry
from cfmvit.ops.masking import functional as masking
from cfmvit.ops.reconstruction import functional as reconstruction
from cfmvit.ops.shared import library

pytestmark = pytest.mark.skipif(library.core is None, reason=library.core_missing)

ENTRIES = registry.load()
TRACED = [name for name, x in ENTRIES.items() if x.family != "calls" and name != "patch_dropout"]  # it seeds


def inputs() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    index = ops.random_masking(3, 8, 0.5, generator=generator).masked
    tokens, pos_embed = (torch.randn(*shape, generator=generator) for shape in ((3, 8, 5), (8, 5)))
    return tokens.requires_grad_(), index, pos_embed.requires_grad_(), torch.tensor([True, False, True])


def test_output_and_gradients_are_those_of_the_dispatcher() -> None:
    tokens, index, pos_embed, keep_pos = inputs()
    found = []
    for run in (masking._NATIVE["gather_tokens"], torch.ops.cfmvit.gather_tokens):
        out = run(tokens, index, pos_embed, keep_pos)
        found.append((out, *torch.autograd.grad(out.square().sum(), (tokens, pos_embed))))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_a_graph_is_recorded_only_where_one_is_wanted() -> None:
    tokens, index, pos_embed, _ = inputs()
    assert ops.gather_tokens(tokens, index).requires_grad
    assert ops.gather_tokens(tokens.detach(), index, pos_embed=pos_embed).requires_grad
    assert not ops.gather_tokens(tokens.detach(), index, pos_embed=pos_embed.detach()).requires_grad
    with torch.no_grad():
        assert not ops.gather_tokens(tokens, index).requires_grad
    with torch.inference_mode():
        assert ops.gather_tokens(tokens, index).is_inference()


def test_the_library_refuses_with_a_value_error_as_python_does() -> None:
    tokens = torch.randn(1, 4, 2)
    for index in (torch.tensor([[4]]), torch.tensor([[-1]])):
        messages = []
        for impl in ("native", "reference"):
            with pytest.raises(ValueError, match=r"^gather_tokens: index must lie in 0\.\.3") as caught:
                ops.gather_tokens(tokens.requires_grad_(), index, impl=impl)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("recorded", [True, False])
def test_tensors_in_a_list_are_seen(recorded: bool) -> None:
    maps = [torch.randn(2, 3, side, side) for side in (8, 4)]
    maps[1].requires_grad_(recorded)
    boxes = torch.tensor([[1.0, 2, 3, 20, 24]])
    run = lambda boxes: ops.multilevel_roi_align(maps, boxes, 2, strides=(4, 8), canonical_scale=16)
    assert run(boxes).requires_grad == recorded
    with torch.no_grad():
        assert not run(boxes).requires_grad
    with pytest.raises(
        ValueError, match=r"^multilevel_roi_align: boxes must have an image number in \[0, 2\)"
    ):
        run(boxes + 1)


def test_other_errors_pass_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Tensor) -> Tensor:
        raise RuntimeError("something else")

    op = reconstruction._NATIVE["masked_cosine_loss"]
    monkeypatch.setattr(op, "op", fails)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        op(torch.randn(1, 2, 3), torch.randn(1, 2, 3), None, 1e-8)


def test_tracers_see_the_op() -> None:
    tokens, index, *_ = inputs()
    graph = make_fx(lambda x: ops.gather_tokens(x, index))(tokens.detach())
    assert torch.ops.cfmvit.gather_tokens.default in [node.target for node in graph.graph.nodes]
    fake = FakeTensorMode()
    faked = fake.from_tensor(tokens), fake.from_tensor(index)
    with fake:
        out = ops.gather_tokens(*faked)
    assert out.shape == (3, 4, 5)


@pytest.mark.parametrize("name", TRACED)
def test_no_op_breaks_the_graph(name: str) -> None:
    case = ENTRIES[name].case("tiny", torch.float32, "cpu")
    torch._dynamo.reset()
    compiled = torch.compile(case.run, fullgraph=True, backend="eager")
    found, expected = compiled(**case.inputs), case.run(**case.inputs)
    torch.testing.assert_close(found, expected)
