"""What is not finite anywhere in what an op is given is not finite in its result and gradients wherever plain PyTorch has it so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ops.samples import P, Sample, Sizes, public

# Rows that fill registers and leave a rest.
SIZES = Sizes(batch=3, tokens=8, boxes=5, labels=37, pairs=37, width=37)
SAMPLES = public(torch.float32, SIZES)
# NaN in noise is refused; a box that is not finite gives zeros.
DOCUMENTED = ("noise", "boxes", "first", "second")


def rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def gather(tokens: Tensor, pos_embed: Tensor, index: Tensor, keep_pos: Tensor | None = None) -> Tensor:
    pos = pos_embed[index]
    return rows(tokens, index) + (pos if keep_pos is None else torch.where(keep_pos[:, None, None], pos, 0))


def split(tokens: Tensor, pos_embed: Tensor, keep: Tensor, masked: Tensor) -> list[Tensor]:
    return [gather(tokens, pos_embed, index) for index in (keep, masked)]


def restore(visible: Tensor, mask_token: Tensor, pos_embed: Tensor, restore: Tensor) -> Tensor:
    masks = mask_token.expand(len(visible), restore.shape[1] - visible.shape[1], -1)
    return rows(torch.cat([visible, masks], 1), restore) + pos_embed


def patches(images: Tensor, index: Tensor) -> Tensor:
    mean, std = images.new_tensor([0.1, 0.2, 0.3]), images.new_tensor([1.0, 2, 3])
    return rows(F.unfold((images - mean[:, None, None]) / std[:, None, None], P, stride=P).mT, index)


def cosine(pred: Tensor, target: Tensor, index: Tensor, weight: Tensor | None = None) -> Tensor:
    losses = 1 - F.cosine_similarity(rows(pred, index), rows(target, index), dim=2)
    return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()


def linear(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, index: Tensor) -> Tensor:
    return linear_each(hidden, weight, bias, target, index).mean()


def linear_each(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, index: Tensor) -> Tensor:
    pred = F.linear(rows(hidden, index), weight, bias)
    return 1 - F.cosine_similarity(pred, rows(target, index), dim=2)


def pixels(pred: Tensor, images: Tensor, index: Tensor) -> Tensor:
    target = rows(F.unfold(images, P, stride=P).mT, index).unflatten(2, (3, P * P)).mT.flatten(2)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    pred = pred if pred.shape[1] == index.shape[1] else rows(pred, index)
    return (pred - target).square().mean()


def roi_align(*arguments: object) -> Tensor:
    return pytest.importorskip("torchvision").ops.roi_align(*arguments)


def multilevel(fine: Tensor, coarse: Tensor, boxes: Tensor) -> Tensor:
    side = ((boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])).sqrt()
    is_coarse = torch.floor(4 + torch.log2(side / 16) + 1e-6) >= 2
    found = [roi_align(x, boxes, 2, scale, 2, True) for x, scale in ((fine, 1 / 2), (coarse, 1 / 4))]
    return torch.where(is_coarse[:, None, None, None], found[1], found[0])


def pool(tokens: Tensor, boxes: Tensor) -> Tensor:
    return roi_align(tokens.mT.unflatten(2, (4, 4)), boxes, 2, 0.25, 2, True).mean((2, 3))


def pool_normalized(tokens: Tensor, boxes: Tensor) -> Tensor:
    return pool(F.normalize(tokens[:, 1:], dim=2), boxes)


def softmax(embeds: Tensor, text: Tensor, temperature: Tensor | float) -> Tensor:
    return (F.normalize(embeds, dim=1) @ F.normalize(text, dim=1).T / temperature).softmax(1)


def scores(region_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    return softmax(region_embeds, text_embeds, 0.01)[:, 1:]


def scores_of_two(
    region_embeds: Tensor, text_embeds: Tensor, vlm_embeds: Tensor, objectness: Tensor, temperature: Tensor, base: Tensor
) -> Tensor:  # fmt: skip
    p, z = softmax(region_embeds, text_embeds, temperature), softmax(vlm_embeds, text_embeds, 0.01)
    share = torch.where(base, p.new_tensor(0.35), 0.65)
    both = p[:, 1:] ** (1 - share) * z[:, 1:] ** share
    return both / (p[:, :1] + both.sum(1, keepdim=True)) * objectness[:, None] ** 3


def clip(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    logits, pairs = logit_scale * (image @ text.T), torch.arange(len(image))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def clip_groups(image: Tensor, text: Tensor, logit_scale: Tensor, group_ids: Tensor) -> Tensor:
    logits = logit_scale * (image @ text.T)
    same = (group_ids[:, None] == group_ids).to(logits)
    target = torch.lerp(same / same.sum(1, keepdim=True), torch.full_like(same, 1 / len(same)), 0.1)
    return -(target * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1) / 2


def clip_local(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    pairs = torch.arange(len(image)) + 1
    return F.cross_entropy(logit_scale * (image @ text.T), pairs, label_smoothing=0.1)


def clip_stats(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> list[Tensor]:
    logits = logit_scale * (image @ text.T) + logit_bias
    known = [*(logits.logsumexp(axis) for axis in (1, 0)), logits.diagonal(), *torch.zeros(2, 1)]
    return [clip(image, text, logit_scale) + 0 * logit_bias, *(x.detach() for x in known)]


def siglip(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    logits = logit_scale * (image @ text.T) + logit_bias
    return -F.logsigmoid((2 * torch.eye(len(image)) - 1) * logits).sum() / len(image)


PLAIN: dict[str, Callable[..., Tensor | list[Tensor]]] = {
    "random_masking": lambda noise: [noise.argsort(1).double() for _ in range(2)],
    "gather_tokens": gather,
    "split_tokens": split,
    "restore_tokens": restore,
    "gather_patches": patches,
    "masked_cosine_loss": cosine,
    "masked_cosine_loss-weight": cosine,
    "linear_masked_cosine_loss": linear,
    "linear_masked_cosine_loss-none": linear_each,
    "masked_pixel_loss": pixels,
    "masked_pixel_loss-all": pixels,
    "roi_align": lambda input, boxes: roi_align(input, boxes, 2, 0.25, 2),
    "roi_align-adaptive": lambda input, boxes: roi_align(input, boxes, 2, 0.5, -1, True),
    "roi_align-lists": lambda input, first, second: roi_align(input, [first, second], 2, 0.5, 2, True),
    "multilevel_roi_align": multilevel,
    "pool_regions": pool,
    "pool_regions-normalize": pool_normalized,
    "score_regions": scores,
    "score_regions-vlm": scores_of_two,
    "info_nce": clip,
    "info_nce-groups": clip_groups,
    "info_nce-local": clip_local,
    "info_nce-stats": clip_stats,
    "siglip_loss": siglip,
}


def outcome(run: Callable[..., Tensor], sample: Sample, found: dict[str, Tensor]) -> list[Tensor]:
    """The result, and the gradients by the sample's values."""
    leaves = {name: x.clone().requires_grad_(name in sample.values) for name, x in found.items()}
    out = run(leaves)
    grads = ()
    if out.requires_grad:
        grads = torch.autograd.grad(
            out.sum(), [leaves[name] for name in sample.values], materialize_grads=True
        )
    return [out.detach(), *grads]


def plain(sample: Sample, found: dict[str, Tensor]) -> list[Tensor]:
    def run(leaves: dict[str, Tensor]) -> Tensor:
        out = PLAIN[str(sample)](**leaves)
        return torch.cat([x.flatten() for x in ([out] if isinstance(out, Tensor) else out)])

    return outcome(run, sample, {k: x.double() if x.is_floating_point() else x for k, x in found.items()})


def ours(sample: Sample, found: dict[str, Tensor], impl: str | None) -> list[Tensor]:
    def run(leaves: dict[str, Tensor]) -> Tensor:
        values, indices = ({name: leaves[name] for name in some} for some in (sample.values, sample.indices))
        return sample(*values.values(), indices=indices, impl=impl)

    return outcome(run, sample, found)


def influence(sample: Sample) -> dict[str, Tensor]:
    """The gradients by all that is no index: zero where the sample leaves a number out."""
    found = {k: x.double() for k, x in {**sample.values, **sample.indices}.items() if x.is_floating_point()}
    leaves = {name: x.requires_grad_() for name, x in found.items() if name not in DOCUMENTED}
    outs = PLAIN[str(sample)](**{**sample.indices, **found})
    weighted = [
        (x * torch.linspace(1, 2, x.numel(), dtype=x.dtype).view(x.shape)).sum()
        for x in ([outs] if isinstance(outs, Tensor) else outs)
        if x.requires_grad
    ]
    return (
        dict(zip(leaves, torch.autograd.grad(weighted, list(leaves.values())), strict=True)) if leaves else {}
    )


def poisoned(sample: Sample) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The sample's tensors with one number that is not finite, in several places of each in turn."""
    tensors = {**sample.values, **sample.indices}
    counts = influence(sample)
    for name, x in tensors.items():
        if not x.is_floating_point() or name in DOCUMENTED:
            continue
        read = counts[name].flatten().nonzero()[:, 0].tolist() or [0]
        middle = read[len(read) // 2]
        places = ((place, math.nan) for place in (read[0], middle, read[-1]))
        for place, bad in dict.fromkeys([*places, (middle, math.inf), (middle, -math.inf)]):
            worse = x.clone(memory_format=torch.contiguous_format)
            worse.view(-1)[place] = bad
            yield f"{name}[{place}] = {bad}", {**tensors, name: worse}


def test_every_sample_has_its_formula() -> None:
    assert PLAIN.keys() == {str(sample) for sample in SAMPLES}
    for sample in public(torch.float64, SIZES):
        found = {**sample.values, **sample.indices}
        expected, out = plain(sample, found), ours(sample, found, None)
        if sample.op != "random_masking":
            keep = len(expected[0]) - 2 * (sample.label == "stats")  # the accuracies are not written out
            torch.testing.assert_close(out[0][:keep], expected[0][:keep], atol=1e-10, rtol=1e-8)
            torch.testing.assert_close(out[1:], expected[1:], atol=1e-10, rtol=1e-8)


# 16-bit numbers have kernels of their own.
@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(sample, id=f"{sample}-{str(dtype)[6:]}")
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for sample in (SAMPLES if dtype == torch.float32 else public(dtype, SIZES))
    ],
)
def test_nothing_is_hidden(sample: Sample) -> None:
    names = ["the result", *(f"the gradient of {name}" for name in sample.values)]
    for what, found in poisoned(sample):
        expected = plain(sample, found)
        assert not all(x.isfinite().all() for x in expected) or "inf" in what, what
        with torch.no_grad():  # which may be another kernel
            alone = ours(sample, found, None)
        for outs in (ours(sample, found, None), ours(sample, found, "reference"), alone):
            for name, theirs, mine in zip(names, expected, outs):
                hidden = mine.isfinite() & ~theirs.isfinite()
                assert not hidden.any(), f"{what} is hidden in {name}, at {hidden.nonzero().tolist()[:5]}"
