from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ovseg import text as text_module
from ovseg.text import BATCH_TOKENS, TextTower, normalised
from ovseg.vocabulary import TEMPLATE_SETS, build_prompts, parse_templates

DIM = 8
VECTORS = np.random.default_rng(0).standard_normal((256, DIM))


class Letters:
    """A tokenizer with one token for each letter, between a first and a last one."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        assert isinstance(texts, list)
        return [[1, *(ord(letter) % 256 for letter in text), 2] for text in texts]


@dataclass
class Network:
    """A text tower that sums a vector for each token and place; keeps a record of its batches."""

    shapes: list[tuple[int, int]] = field(default_factory=list)
    texts: int = 0

    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        assert ids.dtype == mask.dtype == np.int64
        assert ids.shape == mask.shape
        assert (mask[:, :-1] >= mask[:, 1:]).all() and mask[:, -1].any()
        assert (ids[mask == 0] == 0).all()
        self.shapes.append(ids.shape)
        self.texts += len(ids)
        place = 1 + np.arange(ids.shape[1]) % 5
        return np.asarray((VECTORS[ids] * (mask * place)[..., None]).sum(1), np.float32)


def direct(text: str) -> NDArray[np.float64]:
    """What the tower gives for one text: (DIM,), of length 1."""
    ids = [1, *(ord(letter) % 256 for letter in text), 2]
    vector = sum((1 + i % 5) * VECTORS[token] for i, token in enumerate(ids))
    return np.asarray(vector / np.linalg.norm(vector))


def make() -> tuple[TextTower, Network]:
    network = Network()
    return TextTower(Letters(), network), network


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(text_module, "CACHED_PROMPTS", 10)
    yield 10


words = st.text(st.characters(codec="ascii"), min_size=1, max_size=30)


@given(st.lists(words, min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_texts_in_any_order_and_number_give_what_each_gives_alone(texts: list[str]) -> None:
    tower, network = make()
    found = tower.embed(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [direct(text) for text in texts], atol=1e-5)
    assert network.texts == len(set(texts))


def test_batches_hold_like_lengths_and_few_tokens() -> None:
    tower, network = make()
    rng = np.random.default_rng(1)
    texts = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(1, 200, 800)] + ["x" * 9_000]
    found = tower.embed(texts)
    np.testing.assert_allclose(found, [direct(text) for text in texts], atol=1e-5)
    assert all(rows * columns <= BATCH_TOKENS or rows == 1 for rows, columns in network.shapes)
    assert network.shapes[-1] == (1, 9_002)
    tokens = sum(len(text) + 2 for text in set(texts))
    assert sum(rows * columns for rows, columns in network.shapes) < 1.2 * tokens  # hardly any padding
    assert len(network.shapes) < 1.3 * tokens / BATCH_TOKENS + 2


def test_the_cache_answers_with_the_same_values() -> None:
    tower, network = make()
    first = tower.embed(["sky", "grass", "sky"])
    again = tower.embed(["grass", "tree", "sky"])
    assert network.texts == 3
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(again[[2, 0]], first[:2])
    first[:] = 0  # what a caller does with the answer does not reach the cache
    np.testing.assert_allclose(tower.embed(["sky"])[0], direct("sky"), atol=1e-6)


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago(small_cache: int) -> None:
    tower, network = make()
    tower.embed([f"word {i}" for i in range(25)])
    assert network.texts == 25
    tower.embed([f"word {i}" for i in range(25)])  # more than the cache holds
    assert network.texts >= 25 + 25 - small_cache
    assert len(tower._cache) == small_cache
    assert all(row.base is None for row in tower._cache.values())  # a view would keep its batch in memory

    tower, network = make()
    tower.embed([f"word {i}" for i in range(small_cache)])
    tower.embed(["word 0"])
    tower.embed(["new"])
    count = network.texts
    tower.embed(["word 0", "new"])
    assert network.texts == count
    tower.embed(["word 1"])
    assert network.texts == count + 1


@pytest.mark.parametrize("templates", ["none", "imagenet-7", "food", ["a {}.", "the {} there", lambda name: f"{name}!"]])
def test_ensembles_are_means_of_unit_vectors(templates: Any) -> None:
    if templates == "imagenet-7" and templates not in TEMPLATE_SETS:
        templates = "imagenet"
    parsed = parse_templates(templates)
    names = ["sky", "apple pie", "the sea", "sky"]
    tower, _ = make()
    expected = np.stack([np.mean([direct(prompt) for prompt in build_prompts(name, parsed)], axis=0) for name in names])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = tower.embed_names(names, parsed)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_names_whose_templates_give_fewer_prompts_keep_their_place() -> None:
    parsed = parse_templates(["{}", lambda name: name if name == "sky" else f"much {name}"])
    tower, _ = make()
    found = tower.embed_names(["sky", "sea", "sky"], parsed)
    sea = direct("sea") + direct("much sea")
    np.testing.assert_allclose(found, [direct("sky"), sea / np.linalg.norm(sea), direct("sky")], atol=1e-5)


def test_many_prompts_go_in_parts(small_cache: int) -> None:
    parsed = parse_templates(["{}", "a {}.", "many {}", "no {}"])
    names = [f"thing {i}" for i in range(23)]
    tower, network = make()
    seen = []
    embed = tower.embed
    tower.embed = lambda texts: seen.append(len(texts)) or embed(texts)  # type: ignore[method-assign, func-returns-value]
    found = tower.embed_names(names, parsed)
    assert max(seen) <= small_cache and sum(seen) == 92
    assert network.texts == 92
    expected = np.stack([np.sum([direct(prompt) for prompt in build_prompts(name, parsed)], axis=0) for name in names])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_more_templates_than_the_cache_holds(small_cache: int) -> None:
    parsed = parse_templates([f"{i} {{}}" for i in range(3 * small_cache)])
    tower, _ = make()
    found = tower.embed_names(["sky", "sea"], parsed)
    expected = np.stack([np.sum([direct(f"{i} {name}") for i in range(3 * small_cache)], axis=0) for name in ("sky", "sea")])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_five_thousand_names() -> None:
    names = [f"thing number {i}" for i in range(5_000)]
    tower, network = make()
    found = tower.embed_names(names, parse_templates(None))
    assert found.shape == (5_000, DIM)
    np.testing.assert_allclose(found[::97], [direct(name) for name in names[::97]], atol=1e-5)
    assert len(network.shapes) < 50
    np.testing.assert_array_equal(tower.embed_names(names[::-1], parse_templates(None))[::-1], found)
    assert network.texts == 5_000


class SlowDict(OrderedDict[str, Any]):
    """Lets other threads run between a question and what is done about the answer."""

    def __contains__(self, key: object) -> bool:
        answer = super().__contains__(key)
        time.sleep(1e-5)
        return answer

    def __len__(self) -> int:
        answer = super().__len__()
        time.sleep(1e-5)
        return answer


def test_threads_share_a_tower(small_cache: int) -> None:
    tower, _ = make()
    tower._cache = SlowDict()
    names = [f"word {i}" for i in range(2 * small_cache)]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            texts = [names[i] for i in rng.integers(0, len(names), 6)]
            np.testing.assert_allclose(tower.embed(texts), [direct(text) for text in texts], atol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(tower._cache) == small_cache


def test_a_failure_leaves_the_tower_usable() -> None:
    tower, network = make()
    tower.embed(["sky"])

    def fail(ids: Any, mask: Any) -> Any:
        raise RuntimeError("no memory")

    tower._encode = fail
    with pytest.raises(RuntimeError, match="no memory"):
        tower.embed(["sky", "sea"])
    tower._encode = network
    np.testing.assert_allclose(tower.embed(["sea", "sky"]), [direct("sea"), direct("sky")], atol=1e-5)


def test_normalised() -> None:
    vectors = np.array([[3, 4], [0, 0], [-1e-3, 0]], np.float32)
    found = normalised(vectors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [-1, 0]], atol=1e-6)
    assert vectors[0, 0] == 3
