"""From labels to text embeddings: prompts, the text tower, ensembles, a small cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ovseg.text_cache import TextCache
from ovseg.vocabulary import Template, build_prompts

Tokenize = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token ids."""
Floats = NDArray[np.float32]
CACHED_PROMPTS = 20_000
"""Prompts whose embeddings are remembered (384 floats each: 31 MB)."""
CACHED_LISTS = 8
"""Lists of names whose embeddings are remembered as a whole: asking the same of many images must not build all prompts anew."""
BATCH_TOKENS = 4096
"""Tokens of a batch of the text tower, padding included."""


def normalised(vectors: Floats) -> Floats:
    """Scale the rows of (N, D) to unit length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(length, 1e-12)).astype(np.float32)
    return unit


def progress(texts: int) -> Callable[[int], object]:
    """Return what is told of texts that are done: it draws a progress bar if all of them take more than two seconds."""
    if texts < 32:
        return lambda done: None
    from tqdm import tqdm

    bar = tqdm(total=texts, desc="words", unit="prompt", delay=2, leave=False)

    def tell(done: int) -> None:
        bar.update(done)
        if bar.n >= bar.total:
            bar.close()

    return tell


class TextTower:
    """Texts to embeddings, with a cache of the `CACHED_PROMPTS` texts that were used last. Threads may share it.

    Args:
        tokenize: Gives the ids of each text; padded only where the network needs padding.
        encode: Runs the network: (B, T) int64 ids and mask to (B, D) float32.
        store: Embeddings of earlier processes; None for none.
    """

    def __init__(
        self,
        tokenize: Tokenize,
        encode: Callable[[NDArray[np.int64], NDArray[np.int64]], Floats],
        store: TextCache | None = None,
    ) -> None:
        self._tokenize, self._encode, self._store = tokenize, encode, store
        self._cache: OrderedDict[str, Floats] = OrderedDict()
        self._lists: OrderedDict[tuple[tuple[str, ...], tuple[Template, ...]], Floats] = OrderedDict()
        self._lock = Lock()  # guards the caches, not the network: a long call must not stop the others

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return (N, D) float32, L2-normalised, one row for each text."""
        rows: dict[str, Floats] = {}
        missing: list[str] = []
        with self._lock:
            for text in dict.fromkeys(texts):
                if text in self._cache:
                    rows[text] = self._cache[text]
                    self._cache.move_to_end(text)
                else:
                    missing.append(text)
        stored = self._store.get(missing) if self._store is not None and missing else {}
        fresh = self._compute([text for text in missing if text not in stored])
        if self._store is not None:
            self._store.put(fresh)
        rows.update(stored)
        rows.update(fresh)
        with self._lock:
            self._cache.update((text, rows[text]) for text in missing)
            while len(self._cache) > CACHED_PROMPTS:
                self._cache.popitem(last=False)
        return np.stack([rows[text] for text in texts])

    def _compute(self, texts: list[str]) -> dict[str, Floats]:
        """Run the network: text -> (D,) float32, L2-normalised."""
        rows: dict[str, Floats] = {}
        ids = self._tokenize(texts) if texts else []
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))  # texts of like length share a batch
        start = 0
        tell = progress(len(order))
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop - start + 1) * len(ids[order[stop]]) <= BATCH_TOKENS:
                stop += 1
            part = order[start:stop]
            longest = max(len(ids[i]) for i in part)
            padded = np.zeros((len(part), longest), np.int64)
            mask = np.zeros_like(padded)
            for row_index, i in enumerate(part):
                padded[row_index, : len(ids[i])] = ids[i]
                mask[row_index, : len(ids[i])] = 1
            for i, vector in zip(part, normalised(self._encode(padded, mask)), strict=True):
                rows[texts[i]] = vector.copy()  # a view would keep the whole batch in memory
            start = stop
            tell(len(part))
        return rows

    def embed_names(self, names: Sequence[str], templates: Sequence[Template]) -> Floats:
        """Embed names by prompt ensembles: normalise each prompt, take the mean, normalise.

        That is the recipe of CLIP (Radford et al., 2021, section 3.1.4).

        Args:
            names: N names of things.
            templates: Prompt templates; each name goes through all of them.

        Returns:
            (N, D) float32, L2-normalised; not to be written to.
        """
        key = (tuple(names), tuple(templates))
        with self._lock:
            if key in self._lists:
                self._lists.move_to_end(key)
                return self._lists[key]
        vectors = self._ensembles(names, templates)
        vectors.flags.writeable = False
        with self._lock:
            self._lists[key] = vectors
            while len(self._lists) > CACHED_LISTS:
                self._lists.popitem(last=False)
        return vectors

    def _ensembles(self, names: Sequence[str], templates: Sequence[Template]) -> Floats:
        sums = []
        step = max(1, CACHED_PROMPTS // len(templates))  # thousands of names by 80 templates would fill gigabytes
        for start in range(0, len(names), step):
            prompts = [build_prompts(name, templates) for name in names[start : start + step]]
            vectors = self.embed([prompt for group in prompts for prompt in group])
            starts = np.cumsum([0, *(len(group) for group in prompts[:-1])])
            sums.append(np.add.reduceat(vectors, starts, axis=0))
        return normalised(np.concatenate(sums))
