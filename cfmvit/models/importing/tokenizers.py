"""The tokenizers of other libraries' models, as a ``tokenizer.json``: CLIP's BPE, those of Hugging Face folders, SigLIP's."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cfmvit._require import require
from cfmvit.models.hub import local_folder
from cfmvit.models.importing.files import read_config
from cfmvit.models.importing.sentencepiece import read_unigram
from cfmvit.models.tokenizer import Tokenizer

Cleaning = Literal["lower", "whitespace", "canonicalize"]

_BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
CLIP_VOCABULARY = 49408
_MERGES = 49152 - 256 - 2
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""


def given_tokenizer(
    tokenizer: Tokenizer | str | os.PathLike[str] | None, *, siglip: bool = False
) -> tuple[Tokenizer | None, int | None]:
    """Return the tokenizer that a caller names, and the id of its padding where its files say it.

    Args:
        siglip: as for ``hf_tokenizer``.
        tokenizer: one at hand; the path of a ``tokenizer.json``, of OpenAI's ``bpe_simple_vocab_16e6.txt.gz`` or of a SentencePiece
            model (SigLIP's); a Hugging Face folder that has one of them, or ``hf:org/name``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is of another kind.
    """
    if tokenizer is None or isinstance(tokenizer, Tokenizer):
        return tokenizer, None
    path = local_folder(tokenizer)
    if siglip and path.name == "tokenizer.json":
        path = path.parent
    if path.is_dir():
        found = hf_tokenizer(path, siglip=siglip)
        if found[0] is None:
            raise FileNotFoundError(f"import: {path} must hold a tokenizer.json, vocab.json or spiece.model")
        return found
    if path.suffix in (".model", ".spm"):
        return _with_cleaning(read_unigram(path), "canonicalize"), None
    return clip_bpe(path) if path.suffix == ".gz" else Tokenizer.from_file(path), None


def clip_bpe(path: Path | None = None) -> Tokenizer:
    """Return OpenAI's tokenizer, which lower-cases.

    Curly quotes are made straight; what else ``ftfy`` mends in the original (text decoded wrongly, HTML entities) is left alone.

    Args:
        path: ``bpe_simple_vocab_16e6.txt.gz``; by default the one in open_clip.
    """
    if path is None:
        path = Path(str(require("open_clip", extra="open_clip").__file__)).parent / _BPE_FILE
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1 : _MERGES + 1]
    except OSError as error:
        raise ValueError(f"import: {path} can't be read: {error}") from error
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != _MERGES or any(len(pair) != 2 for pair in merges):
        raise ValueError(f"import: {path} must hold the {_MERGES} merges of CLIP's tokenizer")
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    ends = ("<start_of_text>", "<end_of_text>")
    vocabulary = {word: number for number, word in enumerate([*words, *ends])}
    return _with_cleaning(_bpe(vocabulary, merges, ends), "lower")


def hf_tokenizer(folder: Path, *, siglip: bool) -> tuple[Tokenizer | None, int | None]:
    """Return the tokenizer in a folder of Hugging Face's and the id of its padding; None for what isn't there.

    Args:
        siglip: it is a SigLIP's: labels lose their capitals and, before a T5 vocabulary, their punctuation.
    """
    settings = (
        read_config(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    )
    kind = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    if siglip and settings.get("padding_side") == "left":
        raise ValueError(
            f"import: {folder / 'tokenizer_config.json'} asks for padding on the left, where a SigLIP has its on the right"
        )
    cleaning: Cleaning | None = None
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        if siglip:
            cleaning = "canonicalize" if kind in ("SiglipTokenizer", "T5Tokenizer") else "lower"
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer, cleaning = _clip_files(folder), "lower"
    elif (folder / "spiece.model").is_file():
        tokenizer, cleaning = read_unigram(folder / "spiece.model"), "canonicalize"
    else:
        return None, None
    if cleaning:
        tokenizer = _with_cleaning(tokenizer, cleaning, underscore="")
    return tokenizer, _pad_id(tokenizer, settings, "</s>" if kind == "SiglipTokenizer" else None)


def open_clip_tokenizer(
    text: Mapping[str, Any], vocab_size: int, folder: Path | None, tokenizer: Tokenizer | None
) -> tuple[Tokenizer | None, int]:
    """Return the tokenizer of an open_clip model, None where it isn't known, and the id of its padding.

    Args:
        text: the ``text_cfg`` of the model; empty of a model at hand, whose tokenizer is CLIP's if its vocabulary is.
        vocab_size: ids that the text tower has.
        folder: where its files lie, if in a folder.
        tokenizer: the one that a caller gives.

    Raises:
        ValueError: a Hugging Face tokenizer is needed that is not in the folder, or one of an unknown mode.
    """
    options = dict(text.get("tokenizer_kwargs") or {})
    named = text.get("hf_tokenizer_name")
    if not named:
        # A model at hand says nothing of its tokenizer but the number of ids.
        if tokenizer is None and (vocab_size == CLIP_VOCABULARY or (text and vocab_size > CLIP_VOCABULARY)):
            tokenizer = clip_bpe()
            if options.get("clean", "lower") != "lower":
                tokenizer = _with_cleaning(tokenizer, options["clean"])
        return tokenizer, 0
    if text.get("tokenizer_mode"):
        raise ValueError(
            f"import: the tokenizer_mode {text['tokenizer_mode']!r} of open_clip is not supported"
        )
    pad_id = None
    if tokenizer is None:
        tokenizer, pad_id = (None, None) if folder is None else hf_tokenizer(folder, siglip=False)
        if tokenizer is None:
            raise ValueError(
                f"import: this model has the tokenizer of {named}: give it as tokenizer= (--tokenizer), a tokenizer.json, its "
                f"folder or hf:{named}"
            )
    tokenizer = _with_cleaning(tokenizer, options.get("clean", "whitespace"))
    if options.get("strip_sep_token"):
        tokenizer = _without_separator(tokenizer)
    if pad_id is None:
        pad_id = _pad_id(tokenizer, {}, None)
    return tokenizer, 0 if pad_id is None else pad_id


def _bpe(vocabulary: dict[str, int], merges: Sequence[tuple[str, ...]], ends: tuple[str, str]) -> Tokenizer:
    library = require("tokenizers", extra="models")
    before = library.pre_tokenizers
    backend = library.Tokenizer(
        library.models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=ends[1])
    )
    backend.pre_tokenizer = before.Sequence(
        [
            before.Split(library.Regex(_WORDS), behavior="removed", invert=True),
            before.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = library.processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}", special_tokens=[(end, vocabulary[end]) for end in ends]
    )
    return Tokenizer(backend)


def _clip_files(folder: Path) -> Tokenizer:
    vocabulary = read_config(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    ends = ("<|startoftext|>", "<|endoftext|>")
    if not all(end in vocabulary for end in ends):
        raise ValueError(f"import: {folder / 'vocab.json'} must be CLIP's, with {' and '.join(ends)}")
    return _bpe(vocabulary, merges, ends)


def _byte_letters() -> list[str]:
    """Return the letters that stand for bytes, in CLIP's order: those that can be seen first, then the others."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in seen] + [chr(256 + number) for number in range(256 - len(seen))]


def _with_cleaning(tokenizer: Tokenizer, cleaning: Cleaning, underscore: str = " ") -> Tokenizer:
    """Put a cleaning before a tokenizer's own normalisation.

    Args:
        underscore: what ``canonicalize``, which removes punctuation, makes of "_".
    """
    library = require("tokenizers", extra="models")
    normal = library.normalizers
    replace = lambda pattern, by: normal.Replace(library.Regex(pattern), by)
    steps = [normal.NFC(), replace("[\u02bc\u2018-\u201b]", "'"), replace("[\u201c-\u201f]", '"')]
    if cleaning == "canonicalize":
        steps += [replace("_", underscore), replace(_PUNCTUATION, "")]
    elif cleaning not in ("lower", "whitespace"):
        raise ValueError(f"import: the cleaning {cleaning!r} of open_clip's tokenizers is not supported")
    steps += [replace(r"\s+", " "), normal.Strip()]
    if cleaning != "whitespace":
        steps.append(normal.Lowercase())
    backend = library.Tokenizer.from_str(tokenizer.backend.to_str())
    own = backend.normalizer
    backend.normalizer = normal.Sequence(steps if own is None else [*steps, own])
    return Tokenizer(backend)


def _without_separator(tokenizer: Tokenizer) -> Tokenizer:
    """Let the separator that ends a text, BERT's [SEP], be padding."""
    library = require("tokenizers", extra="models")
    backend = library.Tokenizer.from_str(tokenizer.backend.to_str())
    start, end = (backend.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    if start is None or end is None:
        raise ValueError(
            "import: a tokenizer whose separator is stripped must be BERT's, with [CLS] and [SEP]"
        )
    backend.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", start), ("[SEP]", 0)]
    )
    return Tokenizer(backend)


def _pad_id(tokenizer: Tokenizer, settings: Mapping[str, Any], usual: str | None) -> int | None:
    token = settings.get("pad_token", usual)
    if isinstance(token, Mapping):
        token = token.get("content")
    names = ("<pad>", "[PAD]") if token is None else (token,)
    found = [tokenizer.backend.token_to_id(name) for name in names]
    return next((int(number) for number in found if number is not None), None)
