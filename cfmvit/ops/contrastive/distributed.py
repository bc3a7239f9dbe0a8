"""The contrastive losses over a batch that is spread over ranks: own images against the texts of all ranks.

Rows of logits are complete on their rank. Of the columns every rank knows a part, which it sends to the rank that owns the text:
one all-to-all of W b shifts and sums. They merge exactly there, whatever the features' length; a SUM all-reduce of the sums
themselves would need a shift that holds for all ranks first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from cfmvit.ops.contrastive import collectives, reference
from cfmvit.ops.contrastive.native import compute_dtype
from cfmvit.ops.contrastive.text_exchange import EXCHANGES, Block, Gather


class Ranks(NamedTuple):
    """The ranks that a loss is computed over, and how they do it."""

    group: dist.ProcessGroup
    exchange: str  # a key of EXCHANGES
    impl: str  # as `shared.implementation` names it

    def op(self, name: str) -> Callable[..., Any]:
        """The op of that name, or its reference."""
        if self.impl == "reference":
            return getattr(reference, name)
        return getattr(torch.ops.cfmvit, name.removesuffix("_with_gradients")).default


def contrastive_lse(
    image: Tensor, text: Tensor, logit_scale: Tensor, groups: Tensor | None, ranks: Ranks
) -> tuple[Tensor, ...]:
    """Do what the op of that name does, for the own rows of the logits of all ranks and the columns of the own texts.

    image (b, D), text (b, D), groups (b,) -> positive, image_shift, image_sum, text_shift, text_sum, image_max, text_max: (b,)
    each, the last two of no elements without groups. The gradients given back are those of the sum of the ranks' losses. `groups` is compared across ranks.
    """
    return _Lse.apply(image, text, logit_scale, groups, ranks)


def sigmoid_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, ranks: Ranks
) -> Tensor:
    """Do what the op of that name does, for the own rows of the logits of all ranks. Gradients as above."""
    return _Sigmoid.apply(image, text, logit_scale, logit_bias, ranks)


class _Lse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, logit_scale: Tensor, groups: Tensor | None, ranks: Ranks
    ) -> tuple[Tensor, ...]:
        world, rows = dist.get_world_size(ranks.group), text.shape[0]
        exchange = EXCHANGES[ranks.exchange].start(text.contiguous(), ranks.group)
        all_groups = None if groups is None else collectives.gather_rows(groups, ranks.group)
        # What each rank knows of every text: shift, sum and, with groups, the largest among others.
        columns = image.new_empty(2 if groups is None else 3, world * rows, dtype=compute_dtype(image))
        of_rows = []
        for block in exchange.blocks():
            theirs = None if all_groups is None else all_groups[block.columns]
            found = ranks.op("contrastive_lse")(
                image, block.text, logit_scale, block.label_offset, groups, theirs
            )
            if block.label_offset == 0:
                positive = found[0]
            of_rows.append([found[1], found[2], found[5]])
            for of_rank, of_block in zip(columns, (found[3], found[4], found[6]), strict=False):
                of_rank[block.columns] = of_block
        of_columns = collectives.exchange(columns.view(-1, world, rows).transpose(0, 1), ranks.group)
        shifts, row_sums = (torch.stack(x) for x in list(zip(*of_rows, strict=True))[:2])
        image_shift, image_sum = _merged(shifts, row_sums, logit_scale)
        text_shift, text_sum = _merged(of_columns[:, 0], of_columns[:, 1], logit_scale)
        image_max = text_max = positive.new_empty(0)
        if groups is not None:
            image_max = _largest(torch.stack([largest for *_, largest in of_rows]), logit_scale)
            text_max = _largest(of_columns[:, 2], logit_scale)

        ctx.mark_non_differentiable(image_shift, text_shift, image_max, text_max)
        ctx.save_for_backward(image, text, logit_scale, exchange.kept, image_shift, text_shift)
        ctx.ranks = ranks
        return positive, image_shift, image_sum, text_shift, text_sum, image_max, text_max

    @staticmethod
    def backward(
        ctx: Any, grad_positive: Tensor, _: None, grad_image_sum: Tensor, __: None, grad_text_sum: Tensor, *___: None
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        image, _, logit_scale, kept, image_shift, text_shift = (x.detach() for x in ctx.saved_tensors)
        group, (needs_image, needs_text, needs_scale, *_) = ctx.ranks.group, ctx.needs_input_grad
        shifts, grad_sums = (
            x.contiguous()
            for x in collectives.gather_rows(torch.stack((text_shift, grad_text_sum), 1), group).unbind(1)
        )
        sums = _Sums()

        def gradient_of(block: Block) -> Tensor:
            own = block.label_offset is not None
            grad_image, grad_text, grad_scale = ctx.ranks.op("contrastive_lse_backward")(
                image, block.text, logit_scale, block.label_offset, image_shift, shifts[block.columns],
                grad_positive if own else grad_positive[:0], grad_image_sum, grad_sums[block.columns],
                needs_image, needs_text, True,
            )  # fmt: skip
            sums.add(grad_image, grad_scale)
            return grad_text

        grad_text = EXCHANGES[ctx.ranks.exchange](kept, group).scatter(gradient_of, needs_text)
        grad_scale = sums.scalars[0] if needs_scale else None
        grads = sums.image if needs_image else None, grad_text, grad_scale
        return *_once(grads, ctx.saved_tensors), None, None


class _Sigmoid(torch.autograd.Function):
    """With a gather the gradients come with the loss, in three products. In a ring those of the texts travel, each with the weight
    that its rank's loss has in the end, so that they are made in the backward.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, ranks: Ranks
    ) -> Tensor:
        exchange = EXCHANGES[ranks.exchange].start(text.contiguous(), ranks.group)
        needed = ctx.needs_input_grad[:2] if isinstance(exchange, Gather) else (False, False)
        sums, grad_texts = _Sums(), {}
        for block in exchange.blocks():
            loss, grad_image, grad_texts[block.columns.start], *scalars = ranks.op("sigmoid_loss_with_gradients")(
                image, block.text, logit_scale, logit_bias, block.label_offset, *needed
            )  # fmt: skip
            sums.add(grad_image, loss, *scalars)
        loss, *grads = sums.scalars
        ctx.ranks, ctx.columns = ranks, list(grad_texts)
        inputs = (image, text, logit_scale, logit_bias)
        ctx.save_for_backward(*inputs, exchange.kept, sums.image, *grads, *grad_texts.values())
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, _, logit_scale, logit_bias, kept, grad_image, *grads = (x.detach() for x in ctx.saved_tensors)
        grad, grad_texts = grad.detach(), dict(zip(ctx.columns, grads[2:], strict=True))
        exchange = EXCHANGES[ctx.ranks.exchange](kept, ctx.ranks.group)
        needs_image, needs_text, *needs_scalars = ctx.needs_input_grad[:4]
        sums = _Sums()

        def gradient_of(block: Block) -> Tensor:
            if isinstance(exchange, Gather):
                return grad_texts[block.columns.start] * grad
            _, grad_image, grad_text, *_ = ctx.ranks.op("sigmoid_loss_with_gradients")(
                image, block.text, logit_scale, logit_bias, block.label_offset, needs_image, needs_text
            )
            sums.add(grad_image)
            return grad_text * grad

        recompute = not isinstance(exchange, Gather)
        grad_text = exchange.scatter(gradient_of, needs_text) if needs_text or recompute else None
        if sums.image is not None:
            grad_image = sums.image
        grad_image = grad_image * grad if needs_image else None
        grad_scalars = (g * grad if needed else None for g, needed in zip(grads, needs_scalars, strict=False))
        return *_once((grad_image, grad_text, *grad_scalars), ctx.saved_tensors), None


def _largest(similarities: Tensor, logit_scale: Tensor) -> Tensor:
    """Those of the largest logits along the first axis."""
    return torch.where(logit_scale < 0, similarities.amin(0), similarities.amax(0))


def _merged(shifts: Tensor, sums: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and sum (b,) of all ranks, from those of each (W, b)."""
    shift = _largest(shifts, logit_scale)
    factor = torch.where(sums == 0, 0, (logit_scale * (shifts - shift)).exp())
    return shift, (sums * factor).sum(0)


class _Sums:
    """Gradient of the images and scalars, summed over blocks."""

    def __init__(self) -> None:
        self.image: Tensor | None = None
        self.scalars: list[Tensor] = []

    def add(self, image: Tensor, *scalars: Tensor) -> None:
        self.image = image if self.image is None else self.image.add_(image)
        old = self.scalars or [x.new_zeros(()) for x in scalars]
        self.scalars = [a + b for a, b in zip(old, scalars, strict=True)]


def _once(grads: tuple[Tensor | None, ...], inputs: tuple[Tensor, ...]) -> Iterator[Tensor | None]:
    """Gradients in the inputs' dtypes, which refuse to be differentiated again rather than pass for constants."""
    for grad, x in zip(grads, inputs, strict=False):
        yield None if grad is None else _Once.apply(grad.to(x.dtype), *inputs[: len(grads)])


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("contrastive losses: double backward is not supported across ranks")
