"""The text matrix: what a detector can name, as embeddings of the frozen text tower."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit._io import atomic_write
from cfmvit._require import require
from cfmvit.detection.image_input import several
from cfmvit.detection.templates import expand_templates
from cfmvit.models.checkpoint import hash_weights

BACKGROUND = "background"
_MOST_KNOWN = 16_384  # labels that a bank remembers; those not asked for the longest go first


@dataclass(frozen=True)
class Vocabulary:
    """Labels and their embeddings.

    Attributes:
        labels: n names.
        embeddings: (1 + n, C) float32, unit rows; row 0 is "background".
        source: the hash of the text tower and the prompts that made it (``Detector.text_source``), by which a saved one is refused
            to other weights; empty where they are not known.
    """

    labels: tuple[str, ...]
    embeddings: Tensor
    source: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.safetensors`` file, so that a bank of embeddings is encoded once."""
        save = require("safetensors.torch", extra="models").save
        data = save(
            {"embeddings": self.embeddings.cpu().contiguous()},
            metadata={"labels": json.dumps(self.labels), "source": self.source},
        )
        with atomic_write(path) as file:
            file.write(data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: corrupt, or not a vocabulary.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"vocabulary: no file at {path}")
        safetensors = require("safetensors", extra="models")
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                labels, source = json.loads(metadata["labels"]), metadata.get("source", "")
                embeddings = file.get_tensor("embeddings")
        except Exception as error:  # safetensors raises its own type, not derived from a common one
            raise ValueError(f"vocabulary: {path} can't be read ({type(error).__name__}: {error})") from error
        if embeddings.ndim != 2 or len(embeddings) != len(labels) + 1:
            raise ValueError(f"vocabulary: {path} must hold one row a label and one for background")
        return cls(tuple(labels), embeddings, source)

    @classmethod
    def from_images(cls, crops: Mapping[str, Sequence[Any]], detector: Any) -> Vocabulary:
        """Return a vocabulary of what pictures show, for things that words do not name well.

        A label's row is the mean of the frozen image tower's embeddings of its pictures; the background is that of words.

        Args:
            crops: pictures of each label, cut to the object, as ``Detector.predict`` takes them.
            detector: whose frozen model embeds them.

        Raises:
            TypeError, ValueError: no label, a label without a picture or with a picture that is in no list; and all that
                ``Detector.predict`` raises of a picture.
        """
        names = clean_labels(list(crops))
        words = detector.vocabulary(names[:1])
        rows = [words.embeddings[0]]
        for name, given in zip(names, crops.values()):
            pictures = several(given, f"vocabulary: the pictures of {name!r}")
            if not pictures:
                raise ValueError(f"vocabulary: {name!r} must have a picture at least, got none")
            rows.append(F.normalize(detector.embed_pictures(pictures).mean(dim=0), dim=-1))
        return cls(names, torch.stack(rows), words.source)


Words = Sequence[str] | Vocabulary


class TextBank:
    """Encode labels with the frozen text tower, each one once as long as its weights stay what and where they are.

    A label's embedding has the same bits whatever was asked for with it or before: its prompts are a batch of their own.

    Args:
        model: a CFM-ViT with a tokenizer.
        templates: see ``expand_templates``.
    """

    def __init__(self, model: Any, templates: Iterable[str]) -> None:
        self._model = model
        self._prompts = expand_templates(templates)
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._weights: list[tuple[Any, ...]] = []
        self._source = ""

    @torch.no_grad()
    def vocabulary(self, labels: Words) -> Vocabulary:
        """Return the text matrix of cleaned labels (see ``clean_labels``), or the ``Vocabulary`` given.

        Raises:
            ValueError: the ``Vocabulary`` says that another text tower made it, or with other prompts.
        """
        if isinstance(labels, Vocabulary):
            if labels.source and labels.source != self.source():
                raise ValueError(
                    "vocabulary: it was made by another text tower, or with other prompts; Detector.vocabulary makes it anew"
                )
            return labels
        names = clean_labels(labels)
        self._forget_others()
        rows = [self._embedding(name) for name in (BACKGROUND, *names)]
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return Vocabulary(names, torch.stack(rows))

    def source(self) -> str:
        """Return the hash of the prompts and of the weights of the text tower."""
        self._forget_others()
        if not self._source:
            made_by = json.dumps([self._prompts, hash_weights(self._model.text)])
            self._source = hashlib.sha256(made_by.encode()).hexdigest()
        return self._source

    def _forget_others(self) -> None:
        """Keep nothing of weights that the model no longer has."""
        weights = [_fingerprint(weight) for weight in self._model.parameters()]
        if weights != self._weights:
            self._weights, self._known, self._source = weights, OrderedDict(), ""

    def _embedding(self, name: str) -> Tensor:
        if name not in self._known:
            texts = [prompt.format(name) for prompt in self._prompts]
            # Those of one length together: no row is padded, and a label's rows are the same whatever else is asked for.
            of_length: dict[int, list[int]] = {}
            tokenizer = self._model.tokenizer  # without one, encode_text refuses strings
            for number, length in enumerate(tokenizer.lengths(texts) if tokenizer else [0] * len(texts)):
                of_length.setdefault(length, []).append(number)
            found = [
                self._model.encode_text([texts[n] for n in group]).float() for group in of_length.values()
            ]
            self._known[name] = F.normalize(torch.cat(found).mean(dim=0), dim=-1)
        self._known.move_to_end(name)
        return self._known[name]


def _fingerprint(weight: Tensor) -> tuple[Any, ...]:
    """Tell one content of a weight from another; its version alone does not see what is written through ``.data``."""
    bits = weight.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()])
    return weight.device, weight.shape, int(bits.sum(dtype=torch.int64)), weight._version


def clean_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Strip and lower-case labels, and check them.

    Raises:
        TypeError: ``labels`` is one string, or holds something else than strings.
        ValueError: no label, an empty one, the same one twice, or bytes that a terminal could not decode.
    """
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise TypeError(f"labels: labels must be a list of str, got {type(labels).__name__} {labels!r}")
    names = []
    for label in labels:
        if not isinstance(label, str):
            raise TypeError(f"labels: each label must be a str, got {type(label).__name__} {label!r}")
        name = " ".join(label.split()).lower()
        if not name:
            raise ValueError(f"labels: labels must not be empty, got {label!r}")
        if not _is_unicode(name):
            raise ValueError(f"labels: labels must be text in Unicode, got {label!r}")
        names.append(name)
    if not names:
        raise ValueError("labels: at least one label must be given, got none")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"labels: labels must be different, got {', '.join(twice)} more than once")
    return tuple(names)


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, as which Python keeps bytes that are no text."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
