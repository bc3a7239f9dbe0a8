"""score_regions: the ensemble of detector and frozen tower, from its formula, in probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops import score_regions

from .families import cast, moved

R, LABELS, WIDTH = 9, 37, 24
BASE = torch.arange(LABELS) % 3 > 0


def embeddings(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


REGIONS, TEXT, VLM = embeddings(R, 1), embeddings(1 + LABELS, 2), embeddings(R, 3)
OBJECTNESS = torch.rand(R, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def by_formula(
    regions: Tensor,
    text: Tensor,
    vlm: Tensor | None,
    base: Tensor | None,
    objectness: Tensor | None,
    renormalize: bool,
) -> Tensor:
    """The score as paper and docstring state it, without logarithms."""

    def probabilities(embeds: Tensor, temperature: float) -> Tensor:
        return (F.cosine_similarity(embeds[:, None], text[None], dim=2) / temperature).softmax(1)

    p = probabilities(regions, 0.05)
    scores = p[:, 1:]
    if vlm is not None:
        w = (
            torch.where(base, 0.3, 0.6)
            if base is not None
            else text.new_full((LABELS,), 0.6, dtype=torch.float32)
        )
        scores = p[:, 1:] ** (1 - w) * probabilities(vlm, 0.04)[:, 1:] ** w
        if renormalize:
            scores = scores / (p[:, 0] + scores.sum(1))[:, None]
    return scores if objectness is None else scores * objectness[:, None] ** 3


def score(regions: Tensor = REGIONS, text: Tensor = TEXT, **options) -> Tensor:
    weights = dict(temperature=0.05, vlm_temperature=0.04, base_weight=0.3, novel_weight=0.6)
    return score_regions(regions, text, **(weights | options))


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_equals_its_formula(renormalize: bool, impl: str, device: str) -> None:
    regions, text, *given = moved((REGIONS, TEXT, VLM, BASE, OBJECTNESS), device)
    for vlm, base, objectness in itertools.product(*((None, x) for x in given)):
        options = dict(vlm_embeds=vlm, base=base, objectness=objectness, renormalize=renormalize)
        actual = score(regions, text, impl=impl, **options)
        expected = by_formula(regions, text, vlm, base, objectness, renormalize)
        torch.testing.assert_close(actual, expected, rtol=1e-5 if base is not None else 1e-6, atol=1e-12)


@pytest.mark.parametrize("labels", [0, 1, 14, 15, 16, 33, 1203])
def test_native_parity_in_float32(labels: int, device: str) -> None:
    generator = torch.Generator().manual_seed(5)
    text = torch.randn(1 + labels, WIDTH, generator=generator).to(device)
    regions, frozen, objectness = cast((REGIONS, VLM, OBJECTNESS), torch.float32, device)
    for vlm, renormalize, temperature in itertools.product((None, frozen), (True, False), (0.01, 1.0)):
        options = dict(
            vlm_embeds=vlm, objectness=objectness, renormalize=renormalize, temperature=temperature
        )
        actual = score(regions, text, **options)
        options = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
        exact = score(regions.double(), text.double(), impl="reference", **options)
        assert actual.shape == (R, labels)
        assert actual.dtype == torch.float32
        # Logits reach 100, where a float32 ulp is 8e-6.
        torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=1e-9)


def test_many_regions_give_the_same_bits_with_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(6)
    regions, vlm, text = (torch.randn(rows, 700, generator=generator) for rows in (300, 300, 70))
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(score(regions, text, vlm_embeds=vlm))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
    exact = score(regions.double(), text.double(), vlm_embeds=vlm.double(), impl="reference")
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("length", [1e-10, 1e25])
def test_lengths_do_not_matter(length: float) -> None:
    regions, text, vlm = cast((REGIONS, TEXT, VLM), torch.float32, "cpu")
    expected = score(regions, text, vlm_embeds=vlm)
    torch.testing.assert_close(score(length * regions, length * text, vlm_embeds=length * vlm), expected)


def test_the_default_device_does_not_matter() -> None:
    expected = score(vlm_embeds=VLM)
    with torch.device("meta"):
        assert torch.equal(score(vlm_embeds=VLM), expected)


def test_background_and_labels_add_up_to_one() -> None:
    """The background's share is what the labels leave; it comes from the detector alone."""
    both, detector = score(vlm_embeds=VLM, renormalize=True), score()
    assert (both.sum(1) < 1).all()
    assert (detector.sum(1) < 1).all()
    plain = score(vlm_embeds=VLM, renormalize=False)
    background = 1 - detector.sum(1)
    torch.testing.assert_close(1 - both.sum(1), background / (background + plain.sum(1)))


def test_weights_at_their_ends() -> None:
    ends = dict(vlm_embeds=VLM, renormalize=False)
    torch.testing.assert_close(score(**ends, base_weight=0.0, novel_weight=0.0), score())
    frozen = score(VLM, temperature=0.04)
    torch.testing.assert_close(score(**ends, base_weight=1.0, novel_weight=1.0), frozen)
    mixed = score(**ends, base=BASE, base_weight=0.0, novel_weight=1.0)
    torch.testing.assert_close(mixed, torch.where(BASE, score(), frozen))


def test_certain_towers_that_disagree_give_finite_scores(device: str) -> None:
    """Each probability of the other's label is below the smallest float32: the product is not 0 / 0."""
    text = torch.eye(3, 8, device=device)
    for impl in ("native", "reference"):
        out = score_regions(
            text[1:2], text, vlm_embeds=text[2:3], temperature=0.001, vlm_temperature=0.001, impl=impl
        )
        assert out.isfinite().all()
        torch.testing.assert_close(out.sum(1), text.new_ones(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_and_autocast_are_scored_in_float32(dtype: torch.dtype, device: str) -> None:
    regions, text, vlm = cast((REGIONS, TEXT, VLM), dtype, device)
    expected = score(regions.float(), text.float(), vlm_embeds=vlm.float())
    found = score(regions, text, vlm_embeds=vlm)
    # A GPU divides norms out of products of 16-bit numbers, which are exact.
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-9)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(score(regions, text, vlm_embeds=vlm), found)
    assert torch.equal(score(regions, text.float(), vlm_embeds=vlm), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_processor_scores_low_precision_bit_for_bit_as_float32(dtype: torch.dtype) -> None:
    regions, text, vlm = cast((REGIONS, TEXT, VLM), dtype)
    expected = score(regions.float(), text.float(), vlm_embeds=vlm.float())
    assert torch.equal(score(regions, text, vlm_embeds=vlm), expected)


def test_gradients_of_embeddings_temperature_and_objectness() -> None:
    leaves = [x.clone().requires_grad_() for x in (REGIONS[:3], TEXT[:5], VLM[:3], OBJECTNESS[:3] + 0.1)]
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def run(regions: Tensor, text: Tensor, vlm: Tensor, objectness: Tensor, temperature: Tensor) -> Tensor:
        return score(
            regions, text, vlm_embeds=vlm, base=BASE[:4], objectness=objectness, temperature=temperature,
            vlm_temperature=0.5,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, (*leaves, temperature))
    with torch.no_grad():  # the native chain, from tensors that want gradients elsewhere
        torch.testing.assert_close(
            run(*leaves, temperature), run(*(x.detach() for x in (*leaves, temperature)))
        )
    with pytest.raises(
        ValueError, match="score_regions: impl must not be 'native' where gradients are wanted"
    ):
        score(leaves[0], leaves[1], impl="native")


def test_no_regions() -> None:
    assert score(REGIONS[:0], vlm_embeds=VLM[:0], objectness=OBJECTNESS[:0]).shape == (0, LABELS)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"regions": REGIONS[0]}, ValueError, r"region_embeds must have 2 dimensions, got shape \(24,\)"),
        ({"text": TEXT[:0]}, ValueError, r"text_embeds must have shape \(1 \+ n, 24\), .* got \(0, 24\)"),
        ({"text": TEXT[:, 1:]}, ValueError, r"text_embeds must have shape \(1 \+ n, 24\), .* got \(38, 23\)"),
        ({"vlm_embeds": VLM[1:]}, ValueError, r"vlm_embeds must have shape \(9, 24\), got \(8, 24\)"),
        ({"base": BASE[1:]}, ValueError, r"base must have shape \(37,\), got \(36,\)"),
        ({"base": BASE.long()}, TypeError, "base must be bool, got torch.int64"),
        ({"objectness": OBJECTNESS[1:]}, ValueError, r"objectness must have shape \(9,\), got \(8,\)"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        (
            {"temperature": torch.ones(2)},
            ValueError,
            r"temperature must be a number or 0-d, got shape \(2,\)",
        ),
        ({"novel_weight": 1.5}, ValueError, r"novel_weight must be in \[0, 1\], got 1.5"),
        ({"regions": REGIONS.long()}, TypeError, "region_embeds must be float32, .* got torch.int64"),
    ],
)
def test_refusals(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="score_regions: " + message):
        score(**change)
