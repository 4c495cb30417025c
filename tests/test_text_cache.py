from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ovseg import text_cache
from ovseg.text import TextTower
from ovseg.text_cache import TextCache, cache_folder, tower_identity


def rows(count: int, dim: int = 8, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    values = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return {f"word {i}": value for i, value in enumerate(values)}


def same(found: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float32]]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


def write_some(folder: str, worker: int) -> int:
    """Write and read in a process of its own; return how many of the rows came back right."""
    cache, right = TextCache(Path(folder), "tower"), 0
    for part in range(5):
        mine = {f"{worker} {part} {key}": value for key, value in rows(20, seed=worker).items()}
        cache.put(mine)
        right += sum(np.array_equal(value, mine[key]) for key, value in cache.get(list(mine)).items())
    return right


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OVSEG_CACHE": "off", "XDG_CACHE_HOME": "/x"}, None),
        ({"OVSEG_CACHE": ""}, None),
        ({"OVSEG_CACHE": "/here", "XDG_CACHE_HOME": "/x"}, Path("/here")),
        ({"XDG_CACHE_HOME": os.path.abspath("/x")}, Path(os.path.abspath("/x")) / "ovseg"),
    ],
)
def test_the_user_chooses_the_folder(environment: dict[str, str], expected: Path | None) -> None:
    assert cache_folder(environment) == expected


def test_a_relative_xdg_folder_does_not_count() -> None:
    found = cache_folder({"XDG_CACHE_HOME": "x"})
    assert found is not None and found.is_absolute() and found == cache_folder({})


def test_what_is_written_is_found_by_others_of_the_same_tower_only(tmp_path: Path) -> None:
    words = rows(1200) | {"": np.ones(8, np.float32), "\ud800": np.zeros(8, np.float32), "ünï": np.full(8, -1, np.float32)}
    TextCache(tmp_path / "new" / "folder", "tower").put(words)
    again = TextCache(tmp_path / "new" / "folder", "tower")
    assert same(again.get([*words, "unknown"]), words)
    assert TextCache(tmp_path / "new" / "folder", "other tower").get(list(words)) == {}
    assert again.get([]) == {}
    content = again.path.read_bytes()
    assert b"word 7" not in content  # what people ask is nobody's business


def test_nothing_is_made_by_reading(tmp_path: Path) -> None:
    assert TextCache(tmp_path / "none", "tower").get(["a"]) == {}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 400, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_passed_over_and_told_once(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    cache = TextCache(tmp_path, "tower")
    cache.path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert cache.get(["a"]) == {}
        cache.put(rows(2))
        cache.get(["a"])
    assert sum("passed over" in record.message for record in caplog.records) == 1


def test_a_cut_file_is_passed_over(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, "tower")
    cache.put(rows(500, 64))
    cache.path.write_bytes(cache.path.read_bytes()[:20_000])
    found = TextCache(tmp_path, "tower").get(list(rows(500)))
    assert all(np.array_equal(value, rows(500, 64)[key]) for key, value in found.items())


def test_a_changed_vector_is_computed_anew(tmp_path: Path) -> None:
    cache, words = TextCache(tmp_path, "tower"), rows(3)
    cache.put(words)
    with sqlite3.connect(cache.path) as connection:
        key = cache._key("word 1")
        packed = bytearray(connection.execute("SELECT vector FROM rows WHERE key = ?", [key]).fetchone()[0])
        packed[3] ^= 1
        connection.execute("UPDATE rows SET vector = ? WHERE key = ?", [bytes(packed), key])
    connection.close()
    assert cache.get(list(words)).keys() == {"word 0", "word 2"}
    cache.put({"word 1": words["word 1"]})
    assert same(cache.get(list(words)), words)


def test_a_folder_that_is_a_file_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = TextCache(tmp_path / "file", "tower")
    cache.put(rows(2))
    assert cache.get(["word 0"]) == {}
    assert "passed over" in caplog.text


def test_a_file_that_cannot_be_written_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = rows(4)
    TextCache(tmp_path, "tower").put(words)
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: real(f"file:{path}?mode=ro", uri=True, **options))
    monkeypatch.setattr(text_cache.time, "time", lambda: 1e10)  # so late that the use would be noted
    cache = TextCache(tmp_path, "tower")
    assert same(cache.get(list(words)), words)
    cache.put(rows(2, seed=1))  # refused by SQLite; no exception


def test_it_stays_within_its_limit_and_forgets_what_was_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 200_000
    cache = TextCache(tmp_path, "tower", limit)
    clock = 1e9
    for step in range(30):
        clock += 7200
        monkeypatch.setattr(text_cache.time, "time", lambda now=clock: now)
        cache.put({f"{step} {key}": value for key, value in rows(20, 128, step).items()})
        assert len(cache.get([f"0 word {i}" for i in range(20)])) == 20  # used all the time
    assert cache.path.stat().st_size < 1.5 * limit
    assert len(cache.get([f"1 word {i}" for i in range(20)])) == 0
    assert len(cache.get([f"29 word {i}" for i in range(20)])) == 20


def test_one_batch_larger_than_the_limit_does_no_harm(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, "tower", 10_000)
    cache.put(rows(300, 64))
    assert len(cache.get(list(rows(300)))) < 300


def test_threads_and_processes_share_it(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, get_context("spawn")) as pool, ThreadPoolExecutor(3) as threads:
        done = [pool.submit(write_some, str(tmp_path), worker) for worker in range(3)]
        done += [threads.submit(write_some, str(tmp_path), worker) for worker in range(3, 6)]
        assert [future.result() for future in done] == [100] * 6
    with sqlite3.connect(TextCache(tmp_path, "tower").path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_identities_tell_towers_apart(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    a.write_bytes(b"1"), b.write_bytes(b"1")
    base = tower_identity("m", "onnx:cpu", "float32", {"tower": "x", "readout": "naclip"}, [a], {})
    assert base == tower_identity("m", "onnx:cpu", "float32", {"readout": "vanilla", "tower": "x"}, [a], {})
    others = [
        tower_identity("n", "onnx:cpu", "float32", {"tower": "x"}, [a], {}),
        tower_identity("m", "torch:cpu", "float32", {"tower": "x"}, [a], {}),
        tower_identity("m", "onnx:cpu", "float16", {"tower": "x"}, [a], {}),
        tower_identity("m", "onnx:cpu", "float32", {"tower": "y"}, [a], {}),
        tower_identity("m", "onnx:cpu", "float32", {"tower": "x"}, [b], {}),
        tower_identity("m", "onnx:cpu", "float32", {"tower": "x"}, [a], {"a.safetensors": "0f"}),
    ]
    assert len({base, *others}) == 7
    a.write_bytes(b"12")
    assert tower_identity("m", "onnx:cpu", "float32", {"tower": "x"}, [a], {}) != base
    moved = [tower_identity("m", "r", "d", {}, [folder / "w"], {"w": "0f"}) for folder in (tmp_path, tmp_path / "elsewhere")]
    assert moved[0] == moved[1]  # the content counts, where it is known


def test_a_tower_reads_each_text_once_in_all_processes(tmp_path: Path) -> None:
    asked: list[int] = []

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]

    def encode(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        asked.append(len(ids))
        return np.stack([(ids * mask).sum(1), mask.sum(1)], 1).astype(np.float32)

    words = ["sky", "grass", "sky", "a dog"]
    first = TextTower(tokenize, encode, store=TextCache(tmp_path, "t")).embed(words)
    assert sum(asked) == 3
    second = TextTower(tokenize, encode, store=TextCache(tmp_path, "t")).embed([*words, "new"])
    assert sum(asked) == 4
    np.testing.assert_array_equal(second[:4], first)
    np.testing.assert_array_equal(TextTower(tokenize, encode).embed(words), first)
