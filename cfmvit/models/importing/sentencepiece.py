"""SentencePiece models, such as SigLIP's ``spiece.model``, read without the library: a protobuf of pieces and scores."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cfmvit._require import require
from cfmvit.models.tokenizer import Tokenizer

_UNIGRAM = 1


def read_unigram(path: Path) -> Tokenizer:
    """Return the tokenizer of a unigram model; texts end with its ``</s>``.

    Raises:
        ValueError: it is no such model.
    """
    library = require("tokenizers", extra="models")
    pieces: list[tuple[str, float]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for field, value in _fields(path.read_bytes()):
            if field == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        raise ValueError(f"import: {path} must be a SentencePiece model, and can't be read as one") from error
    ends = [number for number, (piece, _) in enumerate(pieces) if piece == "</s>"]
    if trainer.get(3, _UNIGRAM) != _UNIGRAM or not ends:
        raise ValueError(f"import: {path} must be a SentencePiece unigram model with </s>")
    backend = library.Tokenizer(library.models.Unigram(pieces, unk_id=trainer.get(40, 0)))
    steps = [library.normalizers.Replace(library.Regex(" {2,}"), " ")]
    if normalizer.get(2):
        steps.insert(0, library.normalizers.Precompiled(normalizer[2]))
    backend.normalizer = library.normalizers.Sequence(steps)
    backend.pre_tokenizer = library.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = library.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ends[0])]
    )
    return Tokenizer(backend)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the numbers and values of a protobuf message's fields: integers, or bytes as they are."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value: Any
            value, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at : at + size], at + size
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"a field of the kind {kind}")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
