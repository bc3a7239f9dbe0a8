"""Text to token ids by the ``tokenizers`` library: a byte-level BPE learnt from the captions at hand, or an imported model's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfmvit._io import atomic_write
from cfmvit._require import require

PAD = 0


class Tokenizer:
    """A vocabulary and its rules; one learnt here is a lower-casing byte-level BPE in which any text has a tokenization.

    It travels with a model as ``tokenizer.json``, so nothing is downloaded at run time.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 32000) -> Tokenizer:
        """Learn a vocabulary of at most ``vocab_size`` from captions; the same captions give the same vocabulary."""
        tokenizers = require("tokenizers", extra="models")
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
        )
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a tokenizer.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"tokenizer: no file at {path}")
        return cls.from_str(Path(path).read_text(encoding="utf-8", errors="replace"), str(path))

    @classmethod
    def from_str(cls, text: str, source: str = "the text") -> Tokenizer:
        """Read the content of a ``tokenizer.json``; ``str(tokenizer)`` gives it.

        Raises:
            ValueError: it is not a tokenizer; names the source.
        """
        tokenizers = require("tokenizers", extra="models")
        try:
            backend = tokenizers.Tokenizer.from_str(text)
            # A file may ask for rows of any length; texts are cut and padded here.
            backend.no_padding()
            backend.no_truncation()
            return cls(backend)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and a panic of its Rust is none
            raise ValueError(f"tokenizer: {source} can't be read: {error}") from error

    def __str__(self) -> str:
        return self._backend.to_str()

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``."""
        with atomic_write(path, "w") as file:
            file.write(str(self))

    @property
    def backend(self) -> Any:
        """The ``tokenizers.Tokenizer``."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Number of ids, one more than the largest."""
        return max(self._backend.get_vocab().values(), default=-1) + 1

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of ids of each text, before any is cut."""
        return [len(encoding.ids) for encoding in self._backend.encode_batch(list(texts))]

    def __call__(
        self, texts: Sequence[str], context_length: int, *, pad_id: int = PAD, full_length: bool = False
    ) -> Tensor:
        """Return int64 ids (B, L), padded with ``pad_id`` on the right.

        L is that of the longest text, but at most ``context_length``; always that with ``full_length``. A text that is cut keeps
        what the tokenizer sets around every text, such as CLIP's end of text.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: a text without a token.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            kinds = "a str" if isinstance(texts, str) else sorted({type(text).__name__ for text in texts})
            raise TypeError(f"tokenizer: texts must be a list of str, got {kinds}")
        for number, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"tokenizer: texts must not be empty, got {text!r} at position {number}")
        rows = self._rows(texts, context_length)
        for text, row in zip(texts, rows):
            if not row:
                raise ValueError(f"tokenizer: texts must have a token each, got {text!r}, which has none")
        length = context_length if full_length else max(map(len, rows), default=0)
        ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        return ids

    def _rows(self, texts: Sequence[str], context_length: int) -> list[list[int]]:
        around = self._backend.num_special_tokens_to_add(False)
        if not 0 < around < context_length:
            return [encoding.ids[:context_length] for encoding in self._backend.encode_batch(list(texts))]
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        for encoding in encodings:
            encoding.truncate(context_length - around)
        return [self._backend.post_process(encoding).ids for encoding in encodings]
