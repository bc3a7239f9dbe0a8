"""Labels, templates and the text matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cfmvit.detection import Vocabulary, vocabulary
from cfmvit.detection.templates import CLIP_TEMPLATES, expand_templates
from cfmvit.detection.vocabulary import TextBank, clean_labels
from cfmvit.models import Tokenizer, create_model


class CountingModel:
    """Embeds a text by its characters and counts what it is asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.weight = torch.ones(3)
        self.text, self.tokenizer = torch.nn.Identity(), None

    def parameters(self) -> list[torch.Tensor]:
        return [self.weight]

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        self.seen += texts
        rows = [torch.bincount(torch.tensor(list(text.encode())), minlength=128).float() for text in texts]
        return F.normalize(torch.stack(rows), dim=-1)


def test_there_are_clips_80_templates():
    assert len(CLIP_TEMPLATES) == len(set(CLIP_TEMPLATES)) == 80
    assert expand_templates(["clip", "{} !"]) == (*CLIP_TEMPLATES, "{} !")


@pytest.mark.parametrize(
    "templates", [[], ["no place"], ["{} and {}"], ["{7} {}"], ["{} {x}"], ["{"], ["{!r}"], ["{} a"] * 10_001]
)
def test_bad_templates(templates):
    with pytest.raises(ValueError, match=r"templates: "):
        expand_templates(templates)


def test_rows_are_the_normalised_mean_over_templates_with_background_first():
    model = CountingModel()
    matrix = TextBank(model, ["a {}", "the {} x"]).vocabulary(["cat"]).embeddings
    for row, name in zip(matrix, ("background", "cat")):
        mean = model.encode_text([f"a {name}", f"the {name} x"]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm())


def test_a_label_is_encoded_once():
    model = CountingModel()
    bank = TextBank(model, ["{}"])
    first = bank.vocabulary(["cat", "dog"])
    second = bank.vocabulary(["dog", "bird", "cat"])
    assert model.seen == ["background", "cat", "dog", "bird"]
    assert torch.equal(second.embeddings[[0, 3, 1]], first.embeddings)


def test_labels_are_encoded_again_by_other_weights():
    model = CountingModel()
    bank = TextBank(model, ["{}"])
    bank.vocabulary(["cat"])
    model.weight.mul_(2)
    bank.vocabulary(["cat"])
    assert model.seen == ["background", "cat"] * 2


@pytest.mark.parametrize("how", ["data", "copy", "assign", "load"])
def test_no_write_to_the_weights_goes_unseen(how):
    model = create_model("cfm_vit_tiny", tokenizer=Tokenizer.train(["a cat", "a dog"], 64)).eval()
    bank = TextBank(model, ["{}"])
    before = bank.vocabulary(["cat"]).embeddings
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    name = next(name for name, p in model.named_parameters() if name.startswith("text") and p.ndim > 1)
    weights[name] = weights[name].flip(0) * 1.5
    parameter = dict(model.named_parameters())[name]
    if how == "data":
        parameter.data = weights[name]
    elif how == "copy":
        parameter.data.copy_(weights[name])
    else:
        model.load_state_dict(weights, assign=how == "assign")
    found = bank.vocabulary(["cat"]).embeddings
    assert not torch.equal(found, before)
    assert torch.equal(found, TextBank(model, ["{}"]).vocabulary(["cat"]).embeddings)


def test_a_labels_bits_do_not_depend_on_the_others():
    model = create_model("cfm_vit_tiny", tokenizer=Tokenizer.train(["a cat", "a dog"], 64)).eval()
    names = [f"cat {number}" for number in range(9)]
    together = TextBank(model, ["{}", "a {}"]).vocabulary(names).embeddings
    bank = TextBank(model, ["{}", "a {}"])
    for row, name in enumerate(names, start=1):
        assert torch.equal(bank.vocabulary([name]).embeddings[1], together[row])


def test_a_bank_forgets_what_was_not_asked_for_the_longest(monkeypatch):
    monkeypatch.setattr(vocabulary, "_MOST_KNOWN", 3)
    model = CountingModel()
    bank = TextBank(model, ["{}"])
    assert len(bank.vocabulary(["a", "b", "c", "d"]).embeddings) == 5
    bank.vocabulary(["c", "d"])
    assert model.seen == ["background", "a", "b", "c", "d", "background"]


def test_many_labels_are_cleaned_in_a_moment():
    assert len(clean_labels([f"label {number}" for number in range(200_000)])) == 200_000


def test_labels_are_cleaned():
    assert clean_labels(["  Red   Cup ", "DOG"]) == ("red cup", "dog")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("cat", TypeError, "labels must be a list of str, got str 'cat'"),
        (7, TypeError, "labels must be a list of str, got int 7"),
        (["cat", 7], TypeError, "each label must be a str, got int 7"),
        ([], ValueError, "at least one label must be given"),
        (["cat", "  "], ValueError, "labels must not be empty"),
        (["caf\udce9"], ValueError, r"must be text in Unicode, got 'caf\\udce9'"),
        (["cat", "dog", " CAT"], ValueError, "labels must be different, got cat more than once"),
    ],
)
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=message):
        clean_labels(labels)


def test_save_and_load(tmp_path):
    vocabulary = Vocabulary(("a cat", "größe"), F.normalize(torch.randn(3, 8), dim=-1))
    vocabulary.save(tmp_path / "bank.safetensors")
    loaded = Vocabulary.load(tmp_path / "bank.safetensors")
    assert loaded.labels == vocabulary.labels
    assert torch.equal(loaded.embeddings, vocabulary.embeddings)


def test_load_of_missing_or_corrupt_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocabulary: no file at"):
        Vocabulary.load(tmp_path / "none.safetensors")
    Vocabulary(("cat",), torch.eye(2)).save(tmp_path / "bank.safetensors")
    data = (tmp_path / "bank.safetensors").read_bytes()
    (tmp_path / "bank.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"bank.safetensors can't be read"):
        Vocabulary.load(tmp_path / "bank.safetensors")
