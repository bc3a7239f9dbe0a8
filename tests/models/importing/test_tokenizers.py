"""Tokenizers: the ids are those of the originals' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfmvit.models import Tokenizer
from cfmvit.models.importing.tokenizers import clip_bpe, given_tokenizer, hf_tokenizer, open_clip_tokenizer

from .originals import peer

TEXTS = [
    "a photo of a red cup",
    "A  Photo of the MAN's dog, isn't it?!",
    "3 dogs & 12 cats (in 2024)...",
    "naïve café, señor; Ünïcödé",
    "日本の猫 ☃ 🐈",
    "“curly” quotes – the king’s",
    "under_score-and-dash",
    "word " * 40,
]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    peer("open_clip")
    return clip_bpe()


def test_clips_ids(clip: Tokenizer) -> None:
    theirs = peer("open_clip").get_tokenizer("ViT-B-32")(TEXTS)
    ours = clip(TEXTS, 77, full_length=True)
    assert torch.equal(ours, theirs)
    assert torch.equal(clip(TEXTS[:2], 77), theirs[:2, : int((theirs[:2] > 0).sum(1).max())])


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(max_codepoint=126, min_codepoint=32, exclude_characters="&<>"), min_size=1))
def test_clips_ids_of_any_ascii(clip: Tokenizer, text: str) -> None:
    theirs = peer("open_clip").tokenizer._tokenizer([text])
    if text.strip():
        assert torch.equal(clip([text], 77, full_length=True), theirs)


def test_the_file_itself_is_taken(clip: Tokenizer) -> None:
    path = Path(peer("open_clip").__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    assert torch.equal(given_tokenizer(path)[0](TEXTS, 77), clip(TEXTS, 77))


def test_a_folder_of_hugging_faces_clip(clip: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")  # makes it of a vocabulary at hand
    content = json.loads(clip.backend.to_str())["model"]
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(word, word): number
        for word, number in content["vocab"].items()
    }
    theirs = transformers.CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in content["merges"]])
    theirs.save_pretrained(tmp_path / "json")
    texts = [text for text in TEXTS if "“" not in text]
    wanted = theirs(texts, padding="max_length", max_length=20, truncation=True)["input_ids"]
    ours, pad_id = hf_tokenizer(tmp_path / "json", siglip=False)
    assert ours(texts, 20, pad_id=pad_id, full_length=True).tolist() == wanted
    old = tmp_path / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(vocabulary))
    (old / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in content["merges"])
    )
    assert given_tokenizer(old)[0](texts, 20, pad_id=pad_id, full_length=True).tolist() == wanted


def word_pieces(folder: Path) -> Any:
    """Save a small tokenizer of BERT's kind, and return it as transformers has it."""
    transformers, library = peer("transformers"), peer("tokenizers")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "photo",
        "of",
        "the",
        "cup",
        "##s",
        "red",
        "A",
        "dog",
        "'",
        "_",
    ]
    backend = library.Tokenizer(
        library.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(
    "options",
    [{}, {"clean": "canonicalize"}, {"strip_sep_token": True}, {"clean": "lower", "strip_sep_token": True}],
)
def test_open_clips_wrapper_of_hugging_faces(options: dict[str, Any], tmp_path: Path) -> None:
    word_pieces(tmp_path)
    wrapper = peer("open_clip").tokenizer.HFTokenizer(str(tmp_path), context_length=8, **options)
    ours, pad_id = open_clip_tokenizer(
        {"hf_tokenizer_name": "some/name", "tokenizer_kwargs": options}, 15, tmp_path, None
    )
    texts = ["A photo of the cups", "the_dog's  red, cup", "a a a a a a a a a a a"]
    wanted = wrapper(texts)
    cut = int(options.get("strip_sep_token", False))  # its padding takes the place of the separator
    assert torch.equal(ours(texts, 8, pad_id=pad_id, full_length=True), wanted), cut
    with pytest.raises(ValueError, match=r"has the tokenizer of some/name: give it as tokenizer="):
        open_clip_tokenizer({"hf_tokenizer_name": "some/name"}, 15, None, None)


def test_sentencepiece(tmp_path: Path) -> None:
    """SigLIP's own file, held against the library and transformers' wrapper of it."""
    library, transformers = peer("sentencepiece"), peer("transformers")
    words = [
        "a",
        "photo",
        "of",
        "the",
        "red",
        "cup",
        "and",
        "two",
        "dogs",
        "on",
        "blue",
        "sofa",
        "an",
        "old",
        "green",
        "bicycle",
        "in",
        "garden",
    ]
    corpus = [" ".join(words[i:] + words[:i]) for i in range(len(words))] * 20
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=40, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", add_dummy_prefix=True, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    ours, pad_id = hf_tokenizer(tmp_path, siglip=True)
    texts = ["A photo, of the RED cup!", "two  dogs_and a zebra", "garden " * 20]
    wanted = theirs(texts, padding="max_length", max_length=16, truncation=True)["input_ids"]
    assert ours(texts, 16, pad_id=pad_id, full_length=True).tolist() == wanted
    assert given_tokenizer(tmp_path / "spiece.model")[0](texts[:1], 16).tolist() == [
        [i for i in wanted[0] if i != 1] + [1]
    ]
    (tmp_path / "bad.model").write_bytes(b"\x0a\x05nothing")
    with pytest.raises(ValueError, match="must be a SentencePiece"):
        given_tokenizer(tmp_path / "bad.model")
