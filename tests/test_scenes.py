from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_towers import card, tokenize

import ovseg
from ovseg.errors import InvalidArgumentError, InvalidImageError, InvalidLabelsError, OutputError
from ovseg.scenes import segment_scene
from ovseg.scenes.blend import blended
from ovseg.scenes.check import check_tiles, seam_ratio
from ovseg.scenes.layout import Layout
from ovseg.scenes.plan import plan
from ovseg.scenes.raster import Scratch

Floats = NDArray[np.float32]
WORDS = ["red", "green", "blue"]
VECTORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "grey": (0.577, 0.577, 0.577)}


class Blur:
    """Two towers in the space of RGB: a cell's feature is the mean colour of the cells at most `reach` away."""

    name = "fake:cpu"
    encode_global: Any = None
    refine_logits: Any = None

    def __init__(self, reach: int = 1) -> None:
        self.reach, self.sizes = reach, []

    def encode_image(self, pixel_values: Floats) -> Floats:
        batch, _, height, width = pixel_values.shape
        self.sizes.append((height, width))
        cells = pixel_values.reshape(batch, 3, height // 4, 4, width // 4, 4).mean((3, 5))
        side = self.reach
        padded = np.pad(cells, ((0, 0), (0, 0), (side, side), (side, side)), mode="edge")
        blurred = sum(
            padded[:, :, y : y + height // 4, x : x + width // 4] for y in range(2 * side + 1) for x in range(2 * side + 1)
        )
        blurred = blurred / (2 * side + 1) ** 2 + 1e-3
        return (blurred / np.linalg.norm(blurred, axis=1, keepdims=True)).astype(np.float32)

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Floats:
        return np.array([VECTORS["".join(map(chr, ids)).strip()] for ids in input_ids], np.float32)


def blur(reach: int = 1, **changes: Any) -> ovseg.Segmenter:
    return ovseg.Segmenter(card(stride=4, **changes), Blur(reach), tokenize)


@pytest.fixture
def model() -> ovseg.Segmenter:
    return blur()


def blobs(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Colours that change smoothly: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def whole(model: ovseg.Segmenter, image: Any, **options: Any) -> NDArray[Any]:
    return model.segment(image, WORDS, size="native", window="whole", **options).segmentation


# -------------------------------------------------------------------------------------------------------- the same result


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (130, 1), (5, 3), (64, 64), (61, 90), (31, 33)])
def test_one_tile_gives_what_segment_gives(tmp_path: Path, model: ovseg.Segmenter, size: tuple[int, int]) -> None:
    image = blobs(*size)
    scene = segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=512, progress=False)
    found = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, whole(model, image))
    assert scene.size == size
    expected = model.segment(image, WORDS, size="native", window="whole").coverage()
    assert scene.coverage() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.5, 0.25, 2.0])
def test_one_tile_gives_what_segment_gives_at_another_size(tmp_path: Path, model: ovseg.Segmenter, scale: float) -> None:
    image = blobs(64, 96)
    segment_scene(image, WORDS, tmp_path / "a.npy", model=model, scale=scale, tile=512, progress=False)
    expected = model.segment(image, WORDS, size=round(64 * scale), window="whole").segmentation
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


@pytest.mark.parametrize("size", [(1, 300), (190, 1), (200, 170), (77, 301)])
@pytest.mark.parametrize("scale", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_tiles_give_what_the_whole_gives_where_the_network_looks_less_far_than_they_overlap(
    tmp_path: Path, size: tuple[int, int], scale: float, reach: int
) -> None:
    """What a tile does not see weighs less than exp(-6) there."""
    model, image = blur(reach), blobs(*size)
    segment_scene(image, WORDS, tmp_path / "tiles.npy", model=model, scale=scale, tile=64, overlap=32, progress=False)
    segment_scene(image, WORDS, tmp_path / "one.npy", model=model, scale=scale, tile=512, progress=False)
    tiles, one = np.load(tmp_path / "tiles.npy"), np.load(tmp_path / "one.npy")
    assert (tiles == one).mean() > 0.985  # pixels between two colours are a matter of rounding
    if reach == 0:
        assert (tiles == one).mean() > 0.9999


def test_the_features_of_tiles_are_within_the_stated_bound() -> None:
    """|blend - whole| <= 2 w, where w is the weight of the tiles that do not see all that the network looks at."""
    reach, image = 3, blobs(200, 264)
    model = blur(reach)
    layout = plan(model, (200, 264), 1.0, 64, 32)
    from ovseg.scenes.check import _as_one, _features

    tiles, one = _features(model, image, layout).embedding, _features(model, image, _as_one(layout)).embedding
    height, width = layout.cells
    blind = np.zeros((height, width))
    for top, down in zip(layout.tops, layout.weights[0], strict=True):
        for left, across in zip(layout.lefts, layout.weights[1], strict=True):
            weight = down[:, None] * across
            sees = np.zeros_like(weight, bool)
            tall, wide = layout.tile_cells
            y0, y1 = (0 if top == 0 else reach), (tall if top + tall == height else tall - reach)
            x0, x1 = (0 if left == 0 else reach), (wide if left + wide == width else wide - reach)
            sees[y0:y1, x0:x1] = True
            blind[top : top + tall, left : left + wide] += np.where(sees, 0, weight)
    distance = np.linalg.norm(tiles - one, axis=0)
    assert blind.max() < 0.5  # the bound says something
    assert (distance <= 2 * 2 * blind + 1e-5).all()  # twice, as both are scaled to unit length
    assert distance[blind == 0].max() < 1e-5


@pytest.mark.parametrize("memory", [1 << 20, 1 << 21])
def test_swaths_give_what_one_gives(tmp_path: Path, memory: int) -> None:
    model, image = blur(embed_dim=3), blobs(150, 2700)
    for name, budget in (("one", 1 << 30), ("many", memory)):
        segment_scene(image, WORDS, tmp_path / f"{name}.npy", model=model, tile=64, memory=budget, progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), np.load(tmp_path / "many.npy"))


def test_swaths_cover_the_grid_and_are_many() -> None:
    layout = Layout((1000, 5000), 4, 2, 16, 12)
    swaths = layout.swaths(100)
    assert len(swaths) == 13
    assert [swath.stop for swath in swaths[:-1]] == [swath.start for swath in swaths[1:]]
    assert (swaths[0].start, swaths[-1].stop) == (0, layout.cells[1])
    assert layout.swaths(1)[0].stop >= layout.tile_cells[1]  # no narrower than a tile


def test_blending_is_that_of_sliding_windows(model: ovseg.Segmenter) -> None:
    """The streamed blend against the one in memory, with the same tiles."""
    from ovseg.tiling import encode_windows

    image = blobs(192, 160)
    layout = plan(model, (192, 160), 1.0, 64, 24)
    pixel_values = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
    expected = encode_windows(pixel_values, Blur().encode_image, 64, 40, 4)
    values = {}

    def encode(i: int, columns: list[int]) -> Iterator[Floats]:
        for j in columns:
            top, left = layout.tops[i] * 4, layout.lefts[j] * 4
            yield Blur().encode_image(pixel_values[:, :, top : top + 64, left : left + 64])[0]

    for strip in blended(layout, slice(0, 40), 3, encode, 3):
        for row in range(strip.rows.start, strip.rows.stop):
            values[row] = strip.embedding[:, row - strip.top].copy()
    np.testing.assert_allclose(np.stack([values[row] for row in range(48)], 1), expected, atol=1e-6)


def test_seams_are_seen_where_there_are_some() -> None:
    layout = Layout((96, 96), 1, 1, 32, 24)
    smooth = np.stack([np.cos(np.arange(96) / 50)[None].repeat(96, 0), np.sin(np.arange(96) / 50)[None].repeat(96, 0)])
    assert seam_ratio(smooth.astype(np.float32), layout) == pytest.approx(1, abs=0.01)
    for left in layout.lefts[1:]:
        smooth[:, :, left:] += 0.3
    assert seam_ratio(smooth.astype(np.float32), layout) > 3


def test_checking_tiles_says_what_is_true(model: ovseg.Segmenter) -> None:
    found = check_tiles(model, blobs(150, 170), WORDS, tile=64, overlap=32)
    assert found.tiles == 4 * 5
    assert found.labels > 0.98 and found.cosine > 0.999
    assert found.seams < found.even_seams
    assert found.shifted_tiles > 0.9 and abs(found.shifted_tiles - found.shifted_whole) < 0.03
    assert f"{found.labels:.1%}" in found.format_table()
    with pytest.raises(InvalidArgumentError, match="one tile"):
        check_tiles(model, blobs(30, 30), WORDS, tile=64)


# ------------------------------------------------------------------------------------------------------------ what it reads


def test_a_memory_map_a_file_and_an_array_are_the_same(tmp_path: Path, model: ovseg.Segmenter) -> None:
    image = blobs(100, 140)
    segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=64, progress=False)
    np.save(tmp_path / "image.npy", image)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(image).save(tmp_path / "image.tif", compression="tiff_lzw")
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    for source in (mapped, tmp_path / "image.png", str(tmp_path / "image.tif"), Image.fromarray(image)):
        segment_scene(source, WORDS, tmp_path / "b.npy", model=model, tile=64, progress=False)
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_a_private_map_keeps_what_was_written_into_it(tmp_path: Path, model: ovseg.Segmenter) -> None:
    np.save(tmp_path / "image.npy", np.zeros((40, 40, 3), np.uint8))
    image = np.load(tmp_path / "image.npy", mmap_mode="c")
    image[..., 2] = 255
    scene = segment_scene(image, WORDS, tmp_path / "a.npy", model=model, progress=False)
    assert scene.coverage()["blue"] == 1
    assert (image[..., 2] == 255).all()


def test_types_mean_what_they_mean_everywhere(tmp_path: Path, model: ovseg.Segmenter) -> None:
    image = blobs(40, 60)
    expected = whole(model, image)
    for same in (image.astype(np.uint16) * 257, image.astype(np.float32) / 255, image.astype(np.int32)):
        segment_scene(same, WORDS, tmp_path / "a.npy", model=model, progress=False)
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
    reflectance = (image.astype(np.uint16) * 12 + 100)
    segment_scene(reflectance, WORDS, tmp_path / "a.npy", model=model, limits=(100, 3160), progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
    segment_scene(reflectance, WORDS, tmp_path / "a.npy", model=model, limits="auto", progress=False)
    assert (np.load(tmp_path / "a.npy") == expected).mean() > 0.9
    with pytest.raises(InvalidImageError, match="limits="):
        segment_scene(reflectance.astype(np.float32), WORDS, tmp_path / "b.npy", model=model, progress=False)
    assert not (tmp_path / "b.npy").exists()


def test_bands_are_chosen(tmp_path: Path, model: ovseg.Segmenter) -> None:
    image = blobs(40, 60)
    many = np.dstack([np.zeros((40, 60, 3), np.uint8), image[..., ::-1]])
    with pytest.raises(InvalidArgumentError, match="6 bands"):
        segment_scene(many, WORDS, tmp_path / "a.npy", model=model, progress=False)
    segment_scene(many, WORDS, tmp_path / "a.npy", model=model, bands=(5, 4, 3), progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), whole(model, image))
    segment_scene(many, WORDS, tmp_path / "a.npy", model=model, bands=3, progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), whole(model, np.repeat(image[..., 2:], 3, 2)))
    infrared = np.dstack([image, np.zeros((40, 60), np.uint8)])
    segment_scene(infrared, WORDS, tmp_path / "a.npy", model=model, bands=(0, 1, 2), progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), whole(model, image))
    assert segment_scene(infrared, WORDS, tmp_path / "a.npy", model=model, progress=False).pixels == (0, 0, 0)  # all transparent
    for wrong in ((0, 1), (0, 1, 6), (-1, 0, 1), "rgb", (0.0, 1, 2), True):
        with pytest.raises(InvalidArgumentError, match="bands must be"):
            segment_scene(many, WORDS, tmp_path / "a.npy", model=model, bands=wrong, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_pixels_without_data_get_no_label(tmp_path: Path, model: ovseg.Segmenter, scale: float) -> None:
    image = blobs(200, 210).astype(np.float32) / 255
    empty = np.zeros((200, 210), bool)
    empty[:90], empty[120:, 37:] = True, True
    image[empty, 1] = np.nan
    scene = segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=64, scale=scale, progress=False)
    found = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(found == 255, empty)
    assert sum(scene.pixels) == (~empty).sum()
    image[empty] = -9
    segment_scene(image, WORDS, tmp_path / "b.npy", model=model, tile=64, scale=scale, nodata=-9, progress=False)
    np.testing.assert_array_equal(found == 255, np.load(tmp_path / "b.npy") == 255)


def test_tiles_without_data_are_not_looked_at(tmp_path: Path) -> None:
    runtime = Blur()
    model = ovseg.Segmenter(card(stride=4), runtime, tokenize)
    image = np.full((640, 640, 3), 7, np.uint8)
    image[:60, :60] = 200
    segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=64, overlap=0, nodata=7, progress=False)
    assert runtime.sizes.count((64, 64)) == 1


def test_a_geotiff_goes_in_and_out(tmp_path: Path, model: ovseg.Segmenter) -> None:
    rasterio = pytest.importorskip("rasterio")
    image = blobs(120, 150)
    transform = rasterio.transform.from_origin(3e5, 28e5, 0.3, 0.3)
    alpha = np.full((1, 120, 150), 255, np.uint8)
    alpha[:, :, 100:] = 0
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=120, width=150, count=4, dtype="uint8", crs="EPSG:32740", transform=transform,
        photometric="RGB", ALPHA="YES", compress="deflate", tiled=True, blockxsize=64, blockysize=64,
    ) as dataset:  # fmt: skip
        dataset.write(np.concatenate([image.transpose(2, 0, 1), alpha]))
    segment_scene(tmp_path / "a.tif", WORDS, tmp_path / "b.tif", model=model, tile=64, overlay=tmp_path / "b.jpg", progress=False)
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.transform == transform and dataset.crs.to_epsg() == 32740
        found = dataset.read(1)
    assert (found[:, 100:] == 255).all()
    agree = found[:, :90] == whole(model, image[:, :100])[:, :90]
    assert agree.mean() > 0.98
    assert Image.open(tmp_path / "b.jpg").width >= 150


# ----------------------------------------------------------------------------------------------------------- what it writes


@pytest.mark.parametrize("count", [3, 300])
def test_every_format_says_the_same(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = WORDS if count == 3 else [*WORDS, *(f"w{i:03}" for i in range(count - 3))]
    monkeypatch.setattr(sys.modules[__name__], "VECTORS", {**VECTORS, **{word: (0.01, 0.01, 0.01) for word in words[3:]}})
    model, image = blur(), blobs(90, 130)
    expected = model.segment(image, words, size="native", window="whole")
    for name in ("a.png", "a.npz"):
        segment_scene(image, words, tmp_path / name, model=model, tile=512, progress=False)
        found = ovseg.Segmentation.load(tmp_path / name)
        assert found.labels == expected.labels and found.model == "fake"
        np.testing.assert_array_equal(found.segmentation, expected.segmentation)
        assert found.segmentation.dtype == (np.uint8 if count == 3 else np.uint16)
    segment_scene(image, words, tmp_path / "a.npy", model=model, tile=512, progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), expected.segmentation)
    zarr = pytest.importorskip("zarr")
    for _ in range(2):  # the second replaces the first
        segment_scene(image, words, tmp_path / "a.zarr", model=model, tile=512, progress=False)
    array = zarr.open_array(str(tmp_path / "a.zarr"), mode="r")
    np.testing.assert_array_equal(array[:], expected.segmentation)
    assert array.attrs["labels"] == list(words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.labels.json", "a.npy", "a.npz", "a.png", "a.zarr"]
    assert len(json.loads((tmp_path / "a.labels.json").read_text())["colors"]) == count


def test_chosen_colours_are_kept(tmp_path: Path, model: ovseg.Segmenter) -> None:
    from ovseg.labels import Label

    words = ["red", Label("green", color="#0a141e"), "blue"]
    image = blobs(40, 60)
    for name in ("a.png", "a.npz"):
        segment_scene(image, words, tmp_path / name, model=model, overlay=tmp_path / "o.png", progress=False)
        assert ovseg.Segmentation.load(tmp_path / name).colors == {"green": (10, 20, 30)}
    segment_scene(image, words, tmp_path / "a.npy", model=model, progress=False)
    assert json.loads((tmp_path / "a.labels.json").read_text())["colors"][1] == "#0a141e"


def test_background_and_threshold_are_heeded(tmp_path: Path, model: ovseg.Segmenter) -> None:
    image = blobs(100, 120)
    options: list[dict[str, Any]] = [{"background": ["grey"]}, {"threshold": 0.6}, {"margin": 0.2}]
    for more in options:
        segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=512, progress=False, **more)
        expected = whole(model, image, **more)
        assert 0 < (expected == 255).mean() < 1
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


def test_a_mapped_array_is_not_written_over(tmp_path: Path, model: ovseg.Segmenter) -> None:
    image = blobs(100, 120)
    np.save(tmp_path / "a.npy", image)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    with pytest.raises(InvalidArgumentError, match="over its input"):
        segment_scene(mapped, WORDS, tmp_path / "a.npy", model=model, progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), image)


def test_a_list_of_tags_says_the_same_of_every_tile(tmp_path: Path) -> None:
    model, image = blur(0), blobs(150, 170)  # cells that see themselves alone: tiles are the whole
    segment_scene(image, WORDS, tmp_path / "plain.npy", model=model, tile=64, overlap=32, progress=False)
    for tags in (["red"], ("Red", "green")):
        scene = segment_scene(image, WORDS, tmp_path / "tags.npy", model=model, tags=tags, tile=64, overlap=32, progress=False)
        found = np.load(tmp_path / "tags.npy")
        assert (found == whole(model, image, tags=tags)).mean() > 0.999  # two colours may tie but for rounding
        assert scene.coverage()["blue"] < (np.load(tmp_path / "plain.npy") == 2).mean()
    for tags, error in (("auto", InvalidArgumentError), (["yellow"], InvalidLabelsError), ([], InvalidLabelsError)):
        with pytest.raises(error, match="tags"):
            segment_scene(image, WORDS, tmp_path / "no.npy", model=model, tags=tags, progress=False)
    assert not (tmp_path / "no.npy").exists()


def test_what_is_wrong_is_said_before_the_work(tmp_path: Path, model: ovseg.Segmenter) -> None:
    image = blobs(40, 40)
    Image.fromarray(image).save(tmp_path / "image.tif")
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (OutputError, "ends in", {"out": tmp_path / "a.jpg"}),
        (OutputError, "does not exist", {"out": tmp_path / "no" / "a.tif"}),
        (InvalidArgumentError, "over its input", {"image": tmp_path / "image.tif", "out": tmp_path / "image.tif"}),
        (OutputError, "is a folder", {"out": tmp_path / "folder.tif"}),
        (OutputError, "no zarr", {"out": tmp_path / "folder.zarr"}),
        (InvalidLabelsError, "label", {"labels": []}),
        (InvalidArgumentError, "scale", {"scale": 0}),
        (InvalidArgumentError, "scale", {"scale": float("nan")}),
        (InvalidArgumentError, "tile", {"tile": -1}),
        (InvalidArgumentError, "overlap", {"tile": 64, "overlap": 64}),
        (InvalidArgumentError, "memory", {"memory": 10}),
        (InvalidArgumentError, "limits", {"limits": (1, 0)}),
        (InvalidArgumentError, "limits", {"limits": "some"}),
        (InvalidArgumentError, "nodata", {"nodata": "black"}),
        (InvalidArgumentError, "threshold", {"threshold": 2}),
        (InvalidArgumentError, "overlay", {"overlay": "a.tif"}),
        (InvalidImageError, "numeric array", {"image": np.zeros((0, 3), np.uint8)}),
        (InvalidImageError, "transpose", {"image": np.zeros((3, 40, 50), np.uint8)}),
        (InvalidImageError, "no such", {"image": tmp_path / "none.tif"}),
    ]
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "folder.zarr").mkdir()
    before = sorted(tmp_path.iterdir())
    for kind, match, changes in wrong:
        arguments = {"image": image, "labels": WORDS, "out": tmp_path / "a.tif", "model": model, "progress": False, **changes}
        with pytest.raises(kind, match=match):
            segment_scene(arguments.pop("image"), arguments.pop("labels"), arguments.pop("out"), **arguments)
    assert sorted(tmp_path.iterdir()) == before


def test_rules_that_need_the_whole_image_are_refused(tmp_path: Path, model: ovseg.Segmenter) -> None:
    from ovseg.vocabulary import Vocabulary

    words = Vocabulary(WORDS, exclusive=[["red", "green"]])
    with pytest.raises(InvalidArgumentError, match="exclusive"):
        segment_scene(blobs(40, 40), words, tmp_path / "a.npy", model=model, progress=False)
    ranked = Vocabulary(WORDS, priorities=["red > green"])
    segment_scene(blobs(40, 40), ranked, tmp_path / "a.npy", model=model, progress=False)
    expected = model.segment(blobs(40, 40), ranked, size="native", window="whole").segmentation
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    runtime = Blur()
    (tmp_path / "a.tif").write_bytes(b"the old one")

    def fail(pixel_values: Floats) -> Floats:
        if len(runtime.sizes) > 20:
            raise RuntimeError("the network broke")
        return Blur.encode_image(runtime, pixel_values)

    runtime.encode_image = fail  # type: ignore[method-assign]
    model = ovseg.Segmenter(card(stride=4), runtime, tokenize)
    with pytest.raises(RuntimeError, match="broke"):
        segment_scene(blobs(400, 400), WORDS, tmp_path / "a.tif", model=model, tile=64, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    assert (tmp_path / "a.tif").read_bytes() == b"the old one"


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_being_killed_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, 'tests'); import numpy as np, ovseg\n"
        "from test_scenes import Blur, card, tokenize, blobs, WORDS, segment_scene\n"
        "class Slow(Blur):\n"
        "    def encode_image(self, v):\n"
        "        print('tile', flush=True); time.sleep(0.2); return super().encode_image(v)\n"
        f"segment_scene(blobs(400, 400), WORDS, {str(tmp_path / 'a.tif')!r}, model=ovseg.Segmenter(card(stride=4), Slow(), tokenize), "
        "tile=64, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    for _ in range(6):
        assert process.stdout.readline() == b"tile\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, model: ovseg.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match="No space left"):
        segment_scene(blobs(40, 40), WORDS, tmp_path / "a.tif", model=model, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_gives_back_what_was_written(tmp_path: Path) -> None:
    expected = np.zeros((50, 70), np.uint16)
    scratch = Scratch(tmp_path, expected.shape, expected.dtype)
    rng = np.random.default_rng(0)
    for _ in range(30):
        top, left = rng.integers(0, 49), rng.integers(0, 69)
        bottom, right = rng.integers(top + 1, 51), rng.integers(left + 1, 71)
        part = rng.integers(0, 65536, (bottom - top, right - left)).astype(np.uint16)
        expected[top:bottom, left:right] = part
        scratch.write(slice(top, bottom), slice(left, right), part)
    np.testing.assert_array_equal(scratch.read(slice(0, 50)), expected)
    np.testing.assert_array_equal(scratch.read(slice(3, 40), slice(9, 20)), expected[3:40, 9:20])
    assert list(tmp_path.iterdir()) == []  # it has no name


# ------------------------------------------------------------------------------------------- other models, and the whole


def test_models_without_features_speak_for_the_middle_of_tiles(tmp_path: Path) -> None:
    from test_towers import ColourMaps

    model = ovseg.Segmenter(card(conditional=True, activation="sigmoid", stride=1), ColourMaps(), tokenize)
    image = blobs(150, 170)
    expected = model.segment(image, WORDS, size="native").segmentation  # every pixel speaks for itself, so tiles change nothing
    scene = segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=64, overlap=20, progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
    assert sum(scene.pixels) == 150 * 170
    segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=64, overlap=20, nodata=0, overlay=tmp_path / "a.png", progress=False)
    with pytest.raises(InvalidArgumentError, match="context"):
        segment_scene(image, WORDS, tmp_path / "a.npy", model=model, context=1, progress=False)


def test_context_is_the_coarse_look_added_to_the_tiles(tmp_path: Path) -> None:
    """With a weight so large that only the whole counts, the map is that of the image as the model sees it by itself."""
    model, image = blur(0), blobs(256, 320)
    image = np.asarray(Image.fromarray(image).resize((10, 8), Image.Resampling.BOX).resize((320, 256), Image.Resampling.BICUBIC))
    expected = model.segment(image, WORDS).segmentation
    segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=64, context=100, progress=False)
    whole_first = np.load(tmp_path / "a.npy")
    assert (whole_first == expected).mean() > 0.97
    segment_scene(image, WORDS, tmp_path / "b.npy", model=model, tile=64, progress=False)
    assert (np.load(tmp_path / "b.npy") == whole(model, image)).mean() > 0.999


def test_small_and_large_files_of_pillow_are_the_same(tmp_path: Path, model: ovseg.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones are decoded into a file: by rasterio row by row, or at once by Pillow."""
    image = blobs(180, 230)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).save(tmp_path / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif)
    monkeypatch.setattr("ovseg.scenes.sources.SMALL", 100)
    for hidden in ([], ["rasterio"]):
        for name in hidden:
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("a.png", "a.jpg", "turned.jpg"):
            segment_scene(tmp_path / name, WORDS, tmp_path / "b.npy", model=model, tile=512, progress=False)
            found, expected = np.load(tmp_path / "b.npy"), whole(model, tmp_path / name)
            assert found.shape == expected.shape
            assert (found == expected).mean() > (0.99 if name.endswith("jpg") else 0.999999)  # decoders of JPEG differ by a level


def test_the_thumbnail_is_the_mean(tmp_path: Path) -> None:
    from ovseg.scenes.thumbnail import Thumbnail

    image = blobs(103, 211)
    small = Thumbnail((103, 211), side=50)
    assert small.step == 5
    for top, bottom in ((0, 7), (7, 60), (60, 103)):
        for left, right in ((0, 99), (99, 211)):
            small.add(top, left, image[top:bottom, left:right])
    expected = [[image[y : y + 5, x : x + 5].mean((0, 1)) for x in range(0, 211, 5)] for y in range(0, 103, 5)]
    np.testing.assert_allclose(small.picture(), expected, atol=0.51)


def test_the_command_line_sees_by_tiles_where_it_is_asked_to(
    tmp_path: Path, scene: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    from ovseg.cli import main

    Image.fromarray(scene).save(tmp_path / "a.tif")
    ask = ["segment", str(tmp_path / "a.tif"), "sky", "grass"]
    assert main([*ask, "-o", str(tmp_path / "b.tif"), "--overlay", str(tmp_path / "b.jpg")]) == 0
    said = capsys.readouterr().out
    assert "128 x 96" in said and f"wrote {tmp_path / 'b.tif'}" in said and "grass" in said
    assert np.asarray(Image.open(tmp_path / "b.tif")).shape == (96, 128)
    assert json.loads((tmp_path / "b.labels.json").read_text())["labels"] == ["sky", "grass"]
    assert main([*ask, "-o", str(tmp_path / "d.npy"), "--tags", "grass"]) == 0
    assert "grass" in capsys.readouterr().out
    for wrong, match in (
        (["-o", str(tmp_path / "c.tif"), "--size", "200"], "--scale"),
        (["--scale", "0.5"], "name with -o"),
        (["-o", str(tmp_path / "c.json"), "--tile", "256"], "name with -o"),
        (["-o", str(tmp_path / "c.tif"), "--tags", "auto"], "list the labels"),
        (["-o", str(tmp_path / "c.tif"), "--refine", "guided"], "--refine is not for scenes (-o "),
        (["-o", str(tmp_path / "a.tif")], "over its input"),
        (["-o", str(tmp_path / "c.tif"), "--bands", "0,1"], "bands"),
    ):
        assert main([*ask, *wrong]) != 0
        assert match in capsys.readouterr().err
    assert not (tmp_path / "c.tif").exists()
    with pytest.raises(SystemExit):
        main(["segment", str(tmp_path / "a.tif"), "sky", "-o", str(tmp_path / "c.tif"), "--bands", "red"])


def test_the_command_line_sees_by_tiles_what_segment_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovseg.scenes.sources import is_scene

    Image.fromarray(blobs(40, 50)).save(tmp_path / "a.png")
    Image.fromarray(blobs(40, 50)).save(tmp_path / "a.tif")
    (tmp_path / "a.txt").write_text("no image")
    names = ["a.png", "a.tif", "a.txt"]
    assert [is_scene(str(tmp_path / name)) for name in names] == [False, False, False]
    monkeypatch.setattr("ovseg.image.DEFAULT_MAX_PIXELS", 1999)
    assert [is_scene(str(tmp_path / name)) for name in names] == [True, True, False]


def test_a_gpu_is_given_tiles_together_and_a_cpu_is_not(tmp_path: Path) -> None:
    maps = []
    for name, most in (("fake:cpu", 1), ("fake:cuda", 8)):
        runtime = Blur()
        runtime.name = name
        counts = []

        def counted(pixel_values: Floats, runtime: Blur = runtime, counts: list[int] = counts) -> Floats:
            counts.append(len(pixel_values))
            return Blur.encode_image(runtime, pixel_values)

        runtime.encode_image = counted  # type: ignore[method-assign]
        model = ovseg.Segmenter(card(stride=4), runtime, tokenize)
        image = blobs(150, 600).copy()
        image[:64, 100:170] = 0  # a tile without data in the middle of a row
        segment_scene(image, WORDS, tmp_path / "a.npy", model=model, tile=64, nodata=0, progress=False)
        maps.append(np.load(tmp_path / "a.npy"))
        assert max(counts) == most
    np.testing.assert_array_equal(*maps)
