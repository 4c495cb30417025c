"""Position embeddings resized by numpy against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovseg.errors import WeightsError
from ovseg.positions import PositionTable, Resize, axis_weights, of_image, read_tables, resize
from ovseg.tensors import read_tensors, write_tensors

torch = pytest.importorskip("torch")
SIZES = [(1, 1), (2, 9), (6, 8), (7, 6), (13, 21), (40, 3), (6, 7)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_resize_is_torchs(mode: str, antialias: bool, size: tuple[int, int]) -> None:
    table = np.random.default_rng(0).standard_normal((6, 7, 5)).astype(np.float32)
    grid = torch.from_numpy(table).double().permute(2, 0, 1)[None]  # in float32 torch itself is off by 2e-6
    expected = torch.nn.functional.interpolate(grid, size, mode=mode, antialias=antialias, align_corners=False)[0].permute(1, 2, 0)
    np.testing.assert_allclose(resize(table, size, Resize(mode, antialias)), expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 20), (14, 21), (31, 14)])
def test_a_resize_with_a_shift_is_torchs_with_that_scale_factor(size: tuple[int, int]) -> None:
    table = np.random.default_rng(1).standard_normal((14, 14, 3)).astype(np.float32)
    grid = torch.from_numpy(table).double().permute(2, 0, 1)[None]  # in float32 torch itself is off by 2e-6
    scale = [(count + 0.1) / 14 for count in size]
    expected = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    assert expected.shape[:2] == size
    np.testing.assert_allclose(resize(table, size, Resize("bicubic", shift=0.1)), expected.numpy(), rtol=0, atol=1e-6)


def test_the_grid_of_training_is_left_as_it_is() -> None:
    table = np.random.default_rng(2).standard_normal((4, 5, 3)).astype(np.float32)
    assert resize(table, (4, 5), Resize("bicubic", shift=0.1)) is table
    np.testing.assert_allclose(axis_weights(5, 5, Resize("bicubic", antialias=True)), np.eye(5), atol=1e-12)


def test_a_table_of_one_cell_gives_it_everywhere() -> None:
    table = np.arange(3, dtype=np.float32).reshape(1, 1, 3)
    for rule in (Resize(), Resize("bicubic"), Resize("bicubic", True), Resize("bicubic", shift=0.1)):
        np.testing.assert_allclose(resize(table, (4, 2), rule), np.broadcast_to(table, (4, 2, 3)), atol=1e-6)


def test_positions_are_remembered_for_a_few_sizes() -> None:
    table = PositionTable(np.random.default_rng(3).standard_normal((4, 5, 3)).astype(np.float32), 16, Resize("bicubic", True))
    first = table.of_image(96, 64)
    assert first.shape == (6, 4, 3)
    assert table.of_image(96, 64) is first
    for count in range(1, 20):
        table.of_image(16 * count, 16)
    again = table.of_image(96, 64)
    assert again is not first
    np.testing.assert_array_equal(again, first)


def test_a_table_survives_a_card(tmp_path: Path) -> None:
    table = PositionTable(np.random.default_rng(4).standard_normal((4, 5, 3)).astype(np.float32), 14, Resize("bicubic", shift=0.1))
    write_tensors(tmp_path / "positions.safetensors", {"image": table.table})
    again = PositionTable.read(read_tensors(tmp_path / "positions.safetensors")["image"], table.facts())
    np.testing.assert_array_equal(again.of_image(70, 98), table.of_image(70, 98))


def test_two_networks_have_tables_of_their_own() -> None:
    random = np.random.default_rng(6)
    tables = {
        "positions": PositionTable(random.standard_normal((4, 5, 3)).astype(np.float32), 14, Resize("bicubic", shift=0.1)),
        "positions_proxy": PositionTable(random.standard_normal((3, 3, 2)).astype(np.float32), 16, Resize("bicubic", antialias=True)),
    }
    tensors = {"image": tables["positions"].table, "proxy": tables["positions_proxy"].table}
    facts = {"tokenizer": {}, **{name: table.facts() for name, table in tables.items()}}
    found, expected = of_image(read_tables(tensors, facts), 112, 224), of_image(tables, 112, 224)
    assert {name: array.shape for name, array in found.items()} == {"positions": (8, 16, 3), "positions_proxy": (7, 14, 2)}
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    for wrong in ({"image": tensors["image"]}, {}, {**tensors, "other": tensors["image"]}):
        with pytest.raises(WeightsError, match="do not fit"):
            read_tables(wrong, facts)
    with pytest.raises(WeightsError, match="do not fit"):
        read_tables(tensors, {"positions": facts["positions"]})
    with pytest.raises(WeightsError):
        read_tables(tensors, {**facts, "positions_proxy": None})


@pytest.mark.parametrize("facts", [{}, {"patch": 0}, {"patch": 14, "mode": "lanczos"}, {"patch": 14, "tap": 1}, {"patch": "x"}])
def test_a_card_that_does_not_say_how_is_refused(facts: dict[str, object]) -> None:
    with pytest.raises(WeightsError):
        PositionTable.read(np.zeros((2, 2, 3), np.float32), facts)


def test_tensors_are_those_that_the_package_reads_and_writes(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(5)
    arrays = {
        "a": random.standard_normal((3, 1, 2)).astype(np.float32), "b": np.arange(7), "c": np.zeros((0, 3), np.uint8),
        "d": np.float16([1, 2]), "e": np.array(3, np.int32),
    }  # fmt: skip
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(ours, arrays)
    safetensors.save_file(arrays, theirs)
    for found in (read_tensors(ours), read_tensors(theirs), safetensors.load_file(ours)):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("cut", [0, 5, 40, -3])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": np.arange(4.0)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match="x.safetensors"):
        read_tensors(path)
