from __future__ import annotations

import json
import shutil
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ovseg
from ovseg.analysis import compare, compare_folders, report
from ovseg.analysis import maps as maps_module
from ovseg.analysis.maps import open_map
from ovseg.cli import main
from ovseg.errors import InvalidArgumentError, InvalidImageError, MissingDependencyError
from ovseg.result import Segmentation
from ovseg.scenes import segment_scene, tiff_writer
from ovseg.scenes.raster import Georeference, Scratch
from ovseg.scenes.writers import Legend, write_map

LABELS = ("sky", "grass", "sand", "Straße")


def draw(size: tuple[int, int] = (1300, 700), labels: tuple[str, ...] = LABELS) -> Segmentation:
    """Draw blocks of labels and of undecided pixels."""
    random = np.random.default_rng(size[0] + len(labels))
    blocks = random.integers(0, len(labels) + 1, (size[0] // 7 + 1, size[1] // 9 + 1))
    ignore = 255 if len(labels) <= 255 else 65535
    values = np.where(blocks == len(labels), ignore, blocks).repeat(7, 0).repeat(9, 1)[: size[0], : size[1]]
    return Segmentation(values.astype(np.uint8 if ignore == 255 else np.uint16), labels, ignore, model="mini")


def write(path: Path, result: Segmentation) -> Path:
    """Write a map as scenes do."""
    if path.suffix == ".zarr":
        pytest.importorskip("zarr")
    values = Scratch(path.parent, result.segmentation.shape, result.segmentation.dtype)
    values.write(slice(0, result.segmentation.shape[0]), slice(0, result.segmentation.shape[1]), result.segmentation)
    write_map(path, values, Legend(result.labels, result.ignore_index, "mini"), Georeference(), {}, lambda _: None)
    values.close()
    return path


@pytest.mark.parametrize("labels", [LABELS, tuple(f"thing {i}" for i in range(300))], ids=["bytes", "shorts"])
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr", ".png", ".npz"])
def test_what_a_scene_is_written_to_is_read(tmp_path: Path, suffix: str, labels: tuple[str, ...]) -> None:
    drawn = draw(labels=labels)
    path = write(tmp_path / f"map{suffix}", drawn)
    opened = open_map(path)
    assert (opened.labels, opened.ignore_index, opened.size) == (drawn.labels, drawn.ignore_index, (1300, 700))
    assert np.array_equal(np.concatenate([part for _, part in opened.strips()]), drawn.segmentation)
    assert np.array_equal(opened.whole().segmentation, drawn.segmentation)
    opened.close()
    found = compare(path, drawn)
    assert (found.changed_pixels, found.pixels) == (0, 1300 * 700)
    counted = report(tmp_path, progress=False)
    assert counted.names == ("map",) and not counted.skipped
    assert dict(zip(counted.labels, counted.pixels[0].tolist(), strict=False)) == drawn.areas()
    assert report(path, progress=False).pixels.tolist() == counted.pixels.tolist()


def test_a_scene_and_its_report(tmp_path: Path, segmenter: ovseg.Segmenter, scene: Any) -> None:
    for suffix in (".tif", ".npy", ".png"):
        done = segment_scene(scene, ["sky", "grass"], tmp_path / f"a{suffix}", model=segmenter, progress=False)
        found = report(tmp_path / f"a{suffix}", progress=False)
        assert found.pixels[0, :2].tolist() == list(done.pixels)
    assert compare(tmp_path / "a.tif", tmp_path / "a.png").agreement == 1


def test_strips_are_bounded_and_cover_the_map_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw((3000, 5000))
    path = write(tmp_path / "map.tif", drawn)
    second = np.roll(drawn.segmentation, 1, axis=0)
    other = write(tmp_path / "other.tif", Segmentation(second, LABELS, 255))
    expected = (second != drawn.segmentation).sum()
    monkeypatch.setattr(maps_module, "_PIXELS", 1 << 20)
    with closing(open_map(path)) as opened:
        rows = [rows for rows, _ in opened.strips()]
    assert [rows[0].start, rows[-1].stop] == [0, 3000]
    assert all(a.stop == b.start for a, b in zip(rows, rows[1:], strict=False))
    assert max(part.stop - part.start for part in rows) == 512
    monkeypatch.setattr(sys.modules["ovseg.analysis.compare"], "MAX_MARKED", 1000)
    half = write(tmp_path / "half.tif", Segmentation(drawn.segmentation[:1500], LABELS, 255))
    peaks = []
    for one in (half, path):
        tracemalloc.start()
        report(one, progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20)  # twice the pixels, 7.5 MB more
    found = compare(path, other)
    assert found.changed is None
    assert found.changed_pixels == expected


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_big_files_and_files_that_others_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw((600, 530))
    monkeypatch.setattr(tiff_writer, "BIG", 1000)
    path = write(tmp_path / "map.tif", drawn)
    assert path.read_bytes()[:4] == b"II+\0"
    assert compare(path, drawn).agreement == 1
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(path) as source:
        values = source.read(1)
    again = tmp_path / "again.tif"
    with rasterio.open(again, "w", driver="GTiff", width=530, height=600, count=1, dtype="uint8", compress="lzw", predictor=2) as target:
        target.write(values, 1)
    with pytest.raises(InvalidImageError, match="nothing says what its numbers mean"):
        compare(again, drawn)
    shutil.copy(tmp_path / "map.labels.json", tmp_path / "again.labels.json")
    assert compare(again, drawn).agreement == 1


def test_folders_of_scenes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for suffix in (".tif", ".npy", ".zarr"):
            write(tmp_path / folder / f"{suffix[1:]}{suffix}", draw((40, 50)))
        (tmp_path / folder / "photo.tif").write_bytes(b"II*\0")
    found = report(tmp_path / "a", progress=False, regions=True)
    assert found.names == ("npy", "tif", "zarr")
    assert list(found.skipped) == ["photo"]
    assert len(found.regions) == 3 * len(draw((40, 50)).regions())
    both = compare_folders(tmp_path / "a", tmp_path / "b", progress=False)
    assert (both.maps, both.agreement, list(both.unpaired)) == (3, 1, ["photo"])


def test_damage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw((40, 50))
    good = write(tmp_path / "good.npy", drawn)
    legend = json.loads((tmp_path / "good.labels.json").read_text())
    values = drawn.segmentation.copy()
    values[7, 7] = 9
    np.save(tmp_path / "number.npy", values)
    np.save(tmp_path / "kind.npy", drawn.segmentation.astype(np.int64))
    np.save(tmp_path / "bands.npy", drawn.segmentation[None])
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:300])
    np.save(tmp_path / "alone.npy", drawn.segmentation)
    for name in ("number", "kind", "bands", "cut"):
        (tmp_path / f"{name}.labels.json").write_text(json.dumps(legend))
    strangers = {"list": [1], "words": {**legend, "labels": [1, 2]}, "ignored": {**legend, "ignore_index": 7}, "none": None}
    for name, strange in strangers.items():
        np.save(tmp_path / f"{name}.npy", drawn.segmentation)
        (tmp_path / f"{name}.labels.json").write_text(json.dumps(strange))
    found = report(tmp_path, progress=False)
    assert found.names == ("good",)
    assert set(found.skipped) == {"number", "kind", "bands", "cut", "alone", "list", "words", "ignored", "none"}
    assert "other numbers" in found.skipped["number"]
    whole = write(tmp_path / "whole.tif", draw((1300, 700)))
    data = bytearray(whole.read_bytes())
    data[20:200] = bytes(180)  # in the first tile
    whole.write_bytes(data)
    with pytest.raises(InvalidImageError, match="cannot be decompressed"):
        report(tmp_path / "whole.tif", progress=False)
    for name in ("missing.tif", "missing.npy"):
        with pytest.raises(InvalidImageError, match="Cannot load|nothing says"):
            compare(drawn, tmp_path / name)
    monkeypatch.setattr(maps_module, "_MAX_PIXELS", 1000)
    with pytest.raises(InvalidArgumentError, match="Leave the regions out"):
        report(good, regions=True, progress=False)


def test_zarr_needs_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "map.zarr", draw((40, 50)))
    (tmp_path / "no.zarr").mkdir()
    with pytest.raises(InvalidImageError, match="no.zarr"):
        open_map(tmp_path / "no.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingDependencyError, match=r"ovseg\[zarr\]"):
        compare(path, path)
    with pytest.raises(InvalidImageError, match=r"ovseg\[zarr\]"):
        report(path, progress=False)


def test_the_commands_take_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw((40, 50))
    paths = [str(write(tmp_path / name, drawn)) for name in ("a.tif", "b.zarr")]
    assert main(["compare", *paths, "--changed", str(tmp_path / "c.png")]) == 0
    assert "2,000 pixels, 0 changed" in capsys.readouterr().out
    assert main(["report", paths[1]]) == 0
    assert "1 results, 2,000 pixels" in capsys.readouterr().out
    monkeypatch.setattr(sys.modules["ovseg.analysis.compare"], "MAX_MARKED", 100)
    assert main(["compare", *paths, "--changed", str(tmp_path / "c.png")]) == 2
    assert "--changed is for maps of at most" in capsys.readouterr().err
