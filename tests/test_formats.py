"""Saved files against other readers: Pillow, NumPy, pycocotools and the rules of RFC 7946."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ovseg.errors import InvalidArgumentError, InvalidImageError, OutputError
from ovseg.output import formats
from ovseg.output.palette import label_colors
from ovseg.output.rle import decode_rle
from ovseg.result import Segmentation

LABELS = ("sky", "grass", "sand")
MAPS = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 1, 2, 255]),
)


@pytest.fixture
def result() -> Segmentation:
    segmentation = np.array([[0, 0, 1, 1], [0, 255, 1, 1], [0, 0, 0, 1]], np.uint8)
    return Segmentation(segmentation, LABELS, 255, model="mini")


@pytest.fixture
def many() -> Segmentation:
    labels = tuple(f"label {i}" for i in range(300))
    segmentation = np.array([[0, 299], [65535, 256]], np.uint16)
    return Segmentation(segmentation, labels, 65535)


def signed_area(ring: list[list[float]]) -> float:
    """Twice the shoelace sum of a closed ring, edge by edge."""
    pairs = zip(ring[:-1], ring[1:], strict=True)
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs) / 2


def check_geojson(collection: dict[str, Any]) -> None:
    """The rules of RFC 7946 for what we write."""
    json.loads(json.dumps(collection, allow_nan=False))
    assert collection["type"] == "FeatureCollection" and "crs" not in collection
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "MultiPolygon"
        assert feature["geometry"]["coordinates"]
        for polygon in feature["geometry"]["coordinates"]:
            for number, ring in enumerate(polygon):
                assert len(ring) >= 4 and ring[0] == ring[-1]
                assert all(len(position) == 2 for position in ring)
                assert (signed_area(ring) > 0) == (number == 0)


# --- PNG


def test_png_is_readable_by_others(result: Segmentation, tmp_path: Path) -> None:
    result.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), result.segmentation)
        colors = np.asarray(picture.convert("RGB"))
        assert json.loads(str(picture.info["ovseg:labels"])) == list(LABELS)
    expected = label_colors(LABELS)
    np.testing.assert_array_equal(colors[0, 0], expected[0])
    np.testing.assert_array_equal(colors[0, 2], expected[1])
    np.testing.assert_array_equal(colors[1, 1], (218, 221, 226))


def test_png_of_many_labels_is_16_bit(many: Segmentation, tmp_path: Path) -> None:
    many.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(picture), many.segmentation)


def test_png_text_is_international(tmp_path: Path) -> None:
    labels = ("天空", 'quoted "word"', "línea\nnueva", "🐱")
    result = Segmentation(np.array([[0, 1, 2, 3]], np.uint8), labels, 255, model="módel")
    result.save(tmp_path / "a.png")
    assert b"iTXtovseg:labels\0" in (tmp_path / "a.png").read_bytes()
    loaded = Segmentation.load(tmp_path / "a.png")
    assert loaded.labels == labels and loaded.model == "módel"


def test_png_all_255_labels(tmp_path: Path) -> None:
    labels = tuple(f"label {i}" for i in range(255))
    segmentation = np.arange(256, dtype=np.uint8).reshape(16, 16)
    result = Segmentation(segmentation, labels, 255)
    result.save(tmp_path / "a.png")
    assert Segmentation.load(tmp_path / "a.png") == result


def test_foreign_png_is_refused(tmp_path: Path) -> None:
    Image.new("P", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(InvalidImageError, match="ovseg:labels"):
        Segmentation.load(tmp_path / "a.png")


def test_huge_png_is_refused_before_it_is_unfolded(
    result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path / "a.png")
    monkeypatch.setattr(formats, "_MAX_PIXELS", 11)
    with pytest.raises(InvalidImageError, match="4 x 3"):
        Segmentation.load(tmp_path / "a.png")


def test_large_png_needs_no_permission(
    result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert Segmentation.load(tmp_path / "a.png") == result


# --- npz


def test_npz_is_readable_by_numpy(result: Segmentation, tmp_path: Path) -> None:
    result.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert set(archive) == {"segmentation", "labels", "ignore_index", "model"}
        np.testing.assert_array_equal(archive["segmentation"], result.segmentation)
        assert archive["labels"].tolist() == list(LABELS)
        assert archive["ignore_index"] == 255


def test_npz_keeps_scores(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((3, 4, 5), np.float32)
    segmentation = scores.argmax(0).astype(np.uint8)
    result = Segmentation(segmentation, LABELS, 255, scores=scores)
    result.save(tmp_path / "a.npz")
    loaded = Segmentation.load(tmp_path / "a.npz")
    assert loaded == result and loaded.scores is not None
    np.testing.assert_array_equal(loaded.scores, scores)


def test_npz_with_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(
        path,
        segmentation=np.zeros((2, 2), np.uint8),
        labels=np.array(["a", 1], object),
        model=np.array(""),
    )
    with pytest.raises(InvalidImageError, match="damaged"):
        Segmentation.load(path)


# --- round trips


@settings(max_examples=40, deadline=None)
@given(
    segmentation=MAPS,
    labels=st.lists(
        st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
            min_size=1,
            max_size=9,
        ).filter(str.strip),
        min_size=3,
        max_size=3,
        unique=True,
    ),
    suffix=st.sampled_from([".png", ".npz", ".json"]),
)
def test_round_trip(
    segmentation: NDArray[np.uint8],
    labels: list[str],
    suffix: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("saved") / f"a{suffix}"
    result = Segmentation(segmentation, tuple(labels), 255, model="m")
    result.save(path)
    assert Segmentation.load(path) == result


@pytest.mark.parametrize("suffix", [".png", ".npz", ".json", ".PNG"])
def test_round_trip_of_many_labels(many: Segmentation, tmp_path: Path, suffix: str) -> None:
    many.save(tmp_path / f"a{suffix}")
    loaded = Segmentation.load(str(tmp_path / f"a{suffix}"))
    assert loaded == many and loaded.segmentation.dtype == np.uint16


@pytest.mark.parametrize("suffix", [".png", ".npz", ".json"])
def test_as_many_labels_as_there_can_be(tmp_path: Path, suffix: str) -> None:
    labels = tuple(f"a rather long name of a label {i}" for i in range(65535))
    result = Segmentation(np.array([[65534, 65535, 0]], np.uint16), labels, 65535)
    result.save(tmp_path / f"a{suffix}")
    assert Segmentation.load(tmp_path / f"a{suffix}") == result


@pytest.mark.parametrize("suffix", [".png", ".npz", ".json"])
def test_damaged_files(result: Segmentation, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    result.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", whole[:-20], whole[: len(whole) // 2], b"nonsense", b"[]", b"null", b"{}"]
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        try:
            Segmentation.load(path)
        except InvalidImageError as error:
            assert str(path) in str(error)


def test_truncated_png_is_an_error(result: Segmentation, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    result.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InvalidImageError):
        Segmentation.load(path)


def test_json_with_labels_that_are_none(result: Segmentation, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    result.save(path)
    coco = json.loads(path.read_text())
    coco["categories"][0]["name"] = 7
    path.write_text(json.dumps(coco))
    with pytest.raises(InvalidImageError, match="non-blank"):
        Segmentation.load(path)


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="No such file"):
        Segmentation.load(tmp_path / "none.png")
    with pytest.raises(InvalidImageError, match=r"\.png, \.npz, \.json; got \.jpg"):
        Segmentation.load("a.jpg")
    with pytest.raises(InvalidImageError, match="no suffix"):
        Segmentation.load("a")


# --- save


def test_lossy_suffixes_are_refused_with_a_hint(result: Segmentation, tmp_path: Path) -> None:
    for suffix in (".jpg", ".JPEG", ".webp"):
        with pytest.raises(OutputError, match=r"overlay\(\)\.save"):
            result.save(tmp_path / f"a{suffix}")
    for name in ("a.txt", "a", ".png"):
        with pytest.raises(OutputError, match=r"\.png, \.npz, \.json, \.geojson; got"):
            result.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_options_belong_to_a_suffix(result: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"transform is only for \.geojson"):
        result.save(tmp_path / "a.png", transform=(1, 0, 0, 0, 1, 0))
    with pytest.raises(InvalidArgumentError, match=r"file_name is only for \.json"):
        result.save(tmp_path / "a.npz", file_name="a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_save_leaves_the_old_file(
    result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def fail(self: Image.Image, file: io.BufferedWriter, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError, match="No space left"):
        result.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_home_is_expanded(
    result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    result.save("~/a.png")
    assert (tmp_path / "a.png").exists() and Segmentation.load("~/a.png") == result


# --- COCO


def test_coco_file(result: Segmentation, tmp_path: Path) -> None:
    result.save(tmp_path / "beach.json")
    coco = json.loads((tmp_path / "beach.json").read_text(encoding="utf-8"))
    assert coco["images"] == [{"id": 1, "file_name": "beach", "height": 3, "width": 4}]
    assert coco["categories"] == [
        {"id": 1, "name": "sky"},
        {"id": 2, "name": "grass"},
        {"id": 3, "name": "sand"},
    ]
    assert coco["annotations"] == result.to_coco()
    result.save(tmp_path / "beach.json", file_name="beach.jpg")
    coco = json.loads((tmp_path / "beach.json").read_text(encoding="utf-8"))
    assert coco["images"][0]["file_name"] == "beach.jpg"


def test_coco_annotations(result: Segmentation) -> None:
    sky, grass = result.to_coco(image_id=7, first_id=20)
    # Columns of "sky": 3 inside; 1 in, 1 out, 1 in; 2 out, 1 in; 3 out -> 0 4 1 1 2 1 3,
    # stored as 0 4 1 -3 1 0 1.
    assert sky == {
        "id": 20,
        "image_id": 7,
        "category_id": 1,
        "segmentation": {"size": [3, 4], "counts": "041M101"},
        "area": 6,
        "bbox": [0, 0, 3, 3],
        "iscrowd": 0,
    }
    assert (grass["id"], grass["category_id"], grass["bbox"]) == (21, 2, [2, 0, 2, 3])
    np.testing.assert_array_equal(decode_rle(grass["segmentation"]), result.mask("grass"))


def test_coco_is_readable_by_pycocotools(result: Segmentation, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    result.save(tmp_path / "a.json")
    dataset = coco.COCO(str(tmp_path / "a.json"))
    for annotation in dataset.loadAnns(dataset.getAnnIds()):
        label = dataset.loadCats(annotation["category_id"])[0]["name"]
        np.testing.assert_array_equal(dataset.annToMask(annotation), result.mask(label))


# --- GeoJSON


@settings(max_examples=60, deadline=None)
@given(
    MAPS, st.sampled_from([None, (2, 0, 100, 0, -3, 50), (0, 1, 0, 1, 0, 0), (1, 2, 0, -2, 1, 9)])
)
def test_geojson_follows_the_rules(
    segmentation: NDArray[np.uint8], transform: tuple[float, ...] | None
) -> None:
    collection = formats.make_geojson(segmentation, LABELS, transform)
    check_geojson(collection)
    found = [label for i, label in enumerate(LABELS) if (segmentation == i).any()]
    assert [feature["properties"]["label"] for feature in collection["features"]] == found
    a, b, _, d, e, _ = transform or (1, 0, 0, 0, 1, 0)
    for feature in collection["features"]:
        pixels = int((segmentation == feature["properties"]["index"]).sum())
        assert feature["properties"]["pixels"] == pixels
        polygons = feature["geometry"]["coordinates"]
        area = sum(signed_area(ring) for polygon in polygons for ring in polygon)
        assert area == pytest.approx(pixels * abs(a * e - b * d))


def test_geojson_of_one_pixel() -> None:
    segmentation = np.full((3, 4), 255, np.uint8)
    segmentation[1, 2] = 0
    (feature,) = formats.make_geojson(segmentation, LABELS, None)["features"]
    square = [[[[2, 1], [3, 1], [3, 2], [2, 2], [2, 1]]]]
    assert feature["geometry"]["coordinates"] == square
    # A north-up raster of 10 m pixels with its top-left corner at (500, 4000).
    transform = (10, 0, 500, 0, -10, 4000)
    (feature,) = formats.make_geojson(segmentation, LABELS, transform)["features"]
    (ring,) = feature["geometry"]["coordinates"][0]
    assert sorted(map(tuple, ring[:-1])) == [(520, 3980), (520, 3990), (530, 3980), (530, 3990)]
    check_geojson({"type": "FeatureCollection", "features": [feature]})


def test_geojson_accepts_affine_and_functions() -> None:
    segmentation = np.array([[0, 1], [1, 1]], np.uint8)
    six = (0.5, 0.1, 7.0, 0.2, -0.5, 47.0)
    expected = formats.make_geojson(segmentation, LABELS, six)
    nine = (*six, 0.0, 0.0, 1.0)
    assert formats.make_geojson(segmentation, LABELS, nine) == expected
    assert formats.make_geojson(segmentation, LABELS, np.array(six)) == expected

    def project(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[Any, Any]:
        assert x.dtype == y.dtype == np.float64 and x.shape == y.shape
        return 0.5 * x + 0.1 * y + 7, 0.2 * x - 0.5 * y + 47

    collection = formats.make_geojson(segmentation, LABELS, project)
    check_geojson(collection)
    ours = [feature["geometry"]["coordinates"] for feature in collection["features"]]
    theirs = [feature["geometry"]["coordinates"] for feature in expected["features"]]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a[0][0], b[0][0])


def test_geojson_orientation_far_from_the_origin() -> None:
    # Tiny pixels at large coordinates: an area of products of coordinates would be all rounding.
    segmentation = np.array([[0, 1]], np.uint8)
    transform = (1e-3, 0, 4.5e6, 0, -1e-3, 5.3e6)
    for feature in formats.make_geojson(segmentation, LABELS, transform)["features"]:
        (ring,) = feature["geometry"]["coordinates"][0]
        moved = [[x - 4.5e6, y - 5.3e6] for x, y in ring]
        assert signed_area(moved) > 0


@pytest.mark.parametrize(
    "transform",
    [
        (1, 2, 3),
        "abcdef",
        (1, 0, 0, 0, 1, math.nan),
        (1, 0, 0, 0, 1, 0, 0, 0, 2),
        (1, 0, 0, 2, 0, 0),
        ((1, 0, 0), (0, 1, 0)),
        7,
        lambda x, y: (x, y * np.nan),
        lambda x, y: (x[:2], y[:2]),
    ],
)
def test_bad_transforms(transform: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="transform must"):
        formats.make_geojson(np.zeros((2, 2), np.uint8), LABELS, transform)


def test_geojson_file(result: Segmentation, tmp_path: Path) -> None:
    result.save(tmp_path / "a.geojson", transform=(1, 0, 0, 0, -1, 3))
    collection = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    check_geojson(collection)
    assert collection == result.to_geojson((1, 0, 0, 0, -1, 3))
    # Drawn upright again by Pillow, pixel centre by pixel centre, the masks come back.
    for feature in collection["features"]:
        mask = Image.new("1", (40, 30))
        draw = ImageDraw.Draw(mask)
        for polygon in feature["geometry"]["coordinates"]:
            for number, ring in enumerate(polygon):
                draw.polygon([(10 * x, 30 - 10 * y) for x, y in ring], fill=number == 0)
        label = feature["properties"]["label"]
        np.testing.assert_array_equal(np.asarray(mask)[5::10, 5::10], result.mask(label))
