"""From labels to text embeddings: prompts, the text tower, ensembles, a small cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovseg.vocabulary import Template, build_prompts

Floats = NDArray[np.float32]
CACHED_PROMPTS = 20_000
"""Prompts whose embeddings are remembered (384 floats each: 31 MB)."""
BATCH_TOKENS = 4096
"""Tokens of a batch of the text tower, padding included."""


def normalised(vectors: Floats) -> Floats:
    """Scale the rows of (N, D) to unit length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, not padded yet."""

    ids: list[list[int]]

    @classmethod
    def of(cls, tokenizer: object, texts: Sequence[str]) -> Tokens:
        """Tokenise with a `tokenizers.Tokenizer`."""
        return cls([encoding.ids for encoding in tokenizer.encode_batch(list(texts))])  # type: ignore[attr-defined]


class TextTower:
    """Texts to embeddings, with a cache of the last `CACHED_PROMPTS` texts.

    Args:
        tokenizer: A `tokenizers.Tokenizer` without padding.
        encode: Runs the network: (B, T) int64 ids and mask to (B, D) float32.
        pad_id: Token that fills up short texts.
    """

    def __init__(
        self, tokenizer: object, encode: Callable[[NDArray[np.int64], NDArray[np.int64]], Floats], pad_id: int = 0
    ) -> None:
        self._tokenizer, self._encode, self._pad_id = tokenizer, encode, pad_id
        self._cache: OrderedDict[str, Floats] = OrderedDict()

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return (N, D) float32, L2-normalised, one row for each text."""
        rows: dict[str, Floats] = {}
        missing: list[str] = []
        for text in dict.fromkeys(texts):
            row = self._cache.get(text)
            if row is None:
                missing.append(text)
            else:
                rows[text] = row
        ids = Tokens.of(self._tokenizer, missing).ids if missing else []
        order = sorted(range(len(missing)), key=lambda i: len(ids[i]))  # texts of like length share a batch
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop - start + 1) * len(ids[order[stop]]) <= BATCH_TOKENS:
                stop += 1
            part = order[start:stop]
            longest = max(len(ids[i]) for i in part)
            padded = np.full((len(part), longest), self._pad_id, np.int64)
            mask = np.zeros_like(padded)
            for row_index, i in enumerate(part):
                padded[row_index, : len(ids[i])] = ids[i]
                mask[row_index, : len(ids[i])] = 1
            for i, vector in zip(part, normalised(self._encode(padded, mask)), strict=True):
                rows[missing[i]] = vector
                self._cache[missing[i]] = vector
            start = stop
        while len(self._cache) > CACHED_PROMPTS:
            self._cache.popitem(last=False)
        return np.stack([rows[text] for text in texts])

    def embed_names(self, names: Sequence[str], templates: Sequence[Template]) -> Floats:
        """Embed names by prompt ensembles: normalise each prompt, take the mean, normalise.

        That is the recipe of CLIP (Radford et al., 2021, section 3.1.4).

        Args:
            names: N names of things.
            templates: Prompt templates; each name goes through all of them.

        Returns:
            (N, D) float32, L2-normalised.
        """
        prompts = [build_prompts(name, templates) for name in names]
        vectors = self.embed([prompt for group in prompts for prompt in group])
        starts = np.cumsum([0, *(len(group) for group in prompts[:-1])])
        sums = np.add.reduceat(vectors, starts, axis=0)
        return normalised(sums)
