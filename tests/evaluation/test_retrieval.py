"""Recall at k, by hand and with a stand-in model."""

from __future__ import annotations

import pytest
import torch

from cfmvit.evaluation import evaluate_retrieval, retrieval_recall


def test_by_hand() -> None:
    # Image 0 has captions 0 and 1, image 1 has caption 2. Caption 1 lies nearer to image 1.
    images = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    texts = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.0, 2.0]])
    recall = retrieval_recall(images, texts, torch.tensor([0, 0, 1]), ks=(1, 2))
    assert recall["image_to_text_R@1"] == 1.0  # any caption will do
    assert recall["text_to_image_R@1"] == pytest.approx(2 / 3)
    assert recall["text_to_image_R@2"] == 1.0


def test_equals_the_definition_by_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(37, 8, generator=generator), torch.randn(111, 8, generator=generator)
    owner = torch.arange(111) % 37
    texts += 0.6 * images[owner]
    recall = retrieval_recall(images, texts, owner, chunk=10)
    scores = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    for k in (1, 5, 10):
        best = scores.argsort(dim=1, descending=True)[:, :k]
        expected = (owner[best] == torch.arange(37)[:, None]).any(dim=1).double().mean()
        assert recall[f"image_to_text_R@{k}"] == pytest.approx(expected.item())
        best = scores.T.argsort(dim=1, descending=True)[:, :k]
        expected = (best == owner[:, None]).any(dim=1).double().mean()
        assert recall[f"text_to_image_R@{k}"] == pytest.approx(expected.item())
    assert 0.05 < recall["text_to_image_R@1"] < recall["text_to_image_R@10"] < 1


def test_a_collapsed_model_finds_nothing() -> None:
    recall = retrieval_recall(torch.ones(20, 4), torch.ones(20, 4), torch.arange(20))
    assert set(recall.values()) == {0.0}


BAD = {
    "nan": (
        torch.full((2, 3), torch.nan),
        torch.ones(2, 3),
        [0, 1],
        "images must be finite, got NaN or infinity in row 0",
    ),
    "rank": (torch.ones(3), torch.ones(2, 3), [0, 1], r"images must have shape \(N, C\), got \(3,\)"),
    "width": (torch.ones(2, 3), torch.ones(2, 4), [0, 1], "texts must have the width of images 3, got 4"),
    "range": (torch.ones(2, 3), torch.ones(2, 3), [0, 2], r"image_of_text must lie in \[0, 2\), got 2"),
    "length": (torch.ones(2, 3), torch.ones(2, 3), [0], "image_of_text must be 2 integers"),
    "bare": (
        torch.ones(2, 3),
        torch.ones(2, 3),
        [0, 0],
        "image_of_text must name every image, got no caption of 1",
    ),
}


@pytest.mark.parametrize(("images", "texts", "owner", "message"), BAD.values(), ids=BAD)
def test_bad_input(images: torch.Tensor, texts: torch.Tensor, owner: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_recall(images, texts, torch.tensor(owner))


class Palette(torch.nn.Module):
    """Embed an image as its mean colour, and a text as the colour that it names."""

    device = torch.device("cpu")
    colours = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return images.float().mean(dim=(2, 3))

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([self.colours[text.split()[-1]] for text in texts])


def test_of_a_model() -> None:
    model = Palette().train()
    samples = []
    for channel, name in enumerate(Palette.colours):
        image = torch.zeros(3, 4, 4, dtype=torch.uint8)
        image[channel] = 200
        samples.append((image, [f"something {name}"] * (1 + channel)))
    recall = evaluate_retrieval(model, iter(samples), batch_size=2, ks=(1,))
    assert recall == {"image_to_text_R@1": 1.0, "text_to_image_R@1": 1.0}
    assert model.training
    with pytest.raises(ValueError, match="samples must have images with captions, got none"):
        evaluate_retrieval(model, [])
