from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import io
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from random_towers import RandomTowers

import ovseg
from ovseg.errors import (
    BackendError,
    InvalidArgumentError,
    InvalidImageError,
    InvalidLabelsError,
    MissingDependencyError,
    OvsegError,
    UnknownModelError,
    WeightsError,
)
from ovseg.registry import find_card
from ovseg.runtime import onnx as onnx_runtime
from ovseg.vocabulary import TEMPLATE_SETS

Picture = NDArray[np.uint8]
LABELS = ["sky", "grass", "road", "car", "person"]
SMALL = 64  # short side at which most tests look; a tower takes milliseconds there


def agreement(first: NDArray[Any], second: NDArray[Any]) -> float:
    assert first.shape == second.shape
    return float((first == second).mean())


def png(image: Image.Image | Picture, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def scale() -> float:
    """What the cosine is multiplied by before the softmax."""
    card = find_card("mini")
    return card.logit_scale / card.temperature


def reference_logits(features: ovseg.ImageFeatures, text: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Logits of each text at each pixel, interpolated by Pillow: (K, H, W) float32."""
    height, width = features.image_size
    logits = scale * np.einsum("kd,dhw->khw", text, features.embedding)
    return np.stack([np.asarray(Image.fromarray(row).resize((width, height), Image.Resampling.BILINEAR)) for row in logits])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


# ------------------------------------------------------------------------------------------------------------ results


def test_every_pixel_gets_a_label(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    result = segmenter.segment(scene, LABELS)
    assert result.segmentation.shape == (96, 128)
    assert result.segmentation.dtype == np.uint8
    assert result.segmentation.max() < len(LABELS)
    assert (result.labels, result.ignore_index, result.model) == (tuple(LABELS), 255, "mini")
    assert result.scores is None
    assert np.array_equal(result.image, scene)
    assert sum(result.coverage().values()) == pytest.approx(1)


def test_scores_and_map_follow_the_definition(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    features = segmenter.encode_image(scene, size=SMALL)
    logits = reference_logits(features, segmenter.encode_text(LABELS), scale())
    result = segmenter.segment(features, LABELS, scores=True)
    assert np.abs(result.scores - softmax(logits)).max() < 1e-4
    assert agreement(result.segmentation, logits.argmax(0)) > 0.999


def test_scores_sum_to_one_and_their_best_is_the_map(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    with_scores = segmenter.segment(scene, LABELS, size=SMALL, scores=True)
    without = segmenter.segment(scene, LABELS, size=SMALL)
    assert with_scores.scores.shape == (5, 96, 128)
    assert with_scores.scores.dtype == np.float32
    assert np.abs(with_scores.scores.sum(0) - 1).max() < 1e-5
    assert agreement(with_scores.scores.argmax(0), with_scores.segmentation) == 1
    assert agreement(with_scores.segmentation, without.segmentation) > 0.999


def test_sky_is_above_trees_in_a_photograph(segmenter: ovseg.Segmenter) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    result = segmenter.segment(datasets.load_sample_image("china.jpg"), ["sky", "tree"], size=160)
    rows = np.arange(result.segmentation.shape[0])[:, None]
    sky, tree = (np.average(np.broadcast_to(rows, mask.shape), weights=mask) for mask in map(result.mask, ("sky", "tree")))
    assert sky < tree
    assert result.mask("sky")[:40].mean() > 0.9


def test_a_cat_is_no_building(segmenter: ovseg.Segmenter) -> None:
    data = pytest.importorskip("skimage.data")
    answer = segmenter.classify(data.chelsea(), ["building", "cat", "mountain"])
    assert answer.label == "cat"


# ----------------------------------------------------------------------------------------------------------- list in, out


@pytest.mark.parametrize("kind", [list, tuple])
def test_list_in_list_out(segmenter: ovseg.Segmenter, scene: Picture, kind: type) -> None:
    images = kind([scene, scene[:60, :50], Image.fromarray(scene[::-1])])
    results = segmenter.segment(images, LABELS, size=SMALL)
    assert isinstance(results, list)
    assert results == [segmenter.segment(image, LABELS, size=SMALL) for image in images]
    answers = segmenter.classify(images, LABELS)
    assert answers == [segmenter.classify(image, LABELS) for image in images]
    encoded = segmenter.encode_image(images, size=SMALL)
    assert [features.image_size for features in encoded] == [(96, 128), (60, 50), (96, 128)]
    assert segmenter.segment(encoded, LABELS) == results


def test_a_list_of_one_is_a_list_and_of_none_is_empty(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    [one] = segmenter.segment([scene], LABELS, size=SMALL)
    assert one == segmenter.segment(scene, LABELS, size=SMALL)
    assert segmenter.segment([], LABELS) == []
    assert segmenter.classify((), LABELS) == []
    assert segmenter.encode_image([]) == []


@pytest.mark.parametrize("image", [None, 3, [[np.zeros((4, 4, 3), np.uint8)]], iter([]), {"a": 1}, np.zeros((2, 4, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(segmenter: ovseg.Segmenter, image: Any) -> None:
    for job in (segmenter.segment, segmenter.classify):
        with pytest.raises(InvalidImageError):
            job(image, LABELS)
    with pytest.raises(InvalidImageError):
        segmenter.encode_image(image)


# ------------------------------------------------------------------------------------------------------------ image types


def test_every_way_to_give_an_image_gives_the_same_answer(segmenter: ovseg.Segmenter, scene: Picture, tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(png(scene))
    alpha = np.dstack([scene, np.full(scene.shape[:2], 255, np.uint8)])
    ways = {
        "text": str(path),
        "path": path,
        "bytes": png(scene),
        "bytearray": bytearray(png(scene)),
        "pillow": Image.fromarray(scene),
        "pillow file": Image.open(path),
        "opaque alpha": alpha,
        "floats": scene / 255,
        "float32": (scene / 255).astype(np.float32),
        "16 bits": scene.astype(np.uint16) * 257,
        "int64": scene.astype(np.int64),
        "not contiguous": np.repeat(scene, 2, 1)[:, ::2],
        "Fortran order": np.asfortranarray(scene),
        "reversed twice": np.ascontiguousarray(scene[:, ::-1])[:, ::-1],
        "features": segmenter.encode_image(scene, size=SMALL),
    }
    expected = segmenter.segment(scene, LABELS, size=SMALL)
    for name, image in ways.items():
        size = None if name == "features" else SMALL
        assert segmenter.segment(image, LABELS, size=size) == expected, name


def test_a_url_gives_the_same_answer(segmenter: ovseg.Segmenter, scene: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg.image.fetch", lambda url, **_: png(scene))
    result = segmenter.segment("https://example.org/scene.png", LABELS, size=SMALL)
    assert result == segmenter.segment(scene, LABELS, size=SMALL)


def test_a_private_url_is_refused(segmenter: ovseg.Segmenter) -> None:
    with pytest.raises(InvalidImageError, match="private"):
        segmenter.segment("http://127.0.0.1/scene.png", LABELS)


def test_tensors_give_the_same_answer(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(scene.copy()).permute(2, 0, 1)
    expected = segmenter.segment(scene, LABELS, size=SMALL)
    assert segmenter.segment(tensor, LABELS, size=SMALL) == expected
    assert segmenter.segment(tensor.contiguous(), LABELS, size=SMALL) == expected
    assert segmenter.segment(tensor / 255, LABELS, size=SMALL) == expected
    assert segmenter.segment([tensor, tensor], LABELS, size=SMALL) == [expected, expected]


def test_grey_is_grey(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    grey = np.ascontiguousarray(scene[..., 1])
    expected = segmenter.segment(np.dstack([grey] * 3), LABELS, size=SMALL)
    for image in (grey, grey[..., None], Image.fromarray(grey), grey.astype(np.uint16) * 257, png(grey.astype(np.uint16) * 257)):
        assert segmenter.segment(image, LABELS, size=SMALL) == expected


def test_transparent_is_white_and_cmyk_is_read(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    alpha = np.dstack([scene, np.where(np.arange(128) < 64, 255, 0).astype(np.uint8)[None].repeat(96, 0)])
    white = np.where(np.arange(128)[None, :, None] < 64, scene, 255).astype(np.uint8)
    assert segmenter.segment(png(alpha), LABELS, size=SMALL) == segmenter.segment(white, LABELS, size=SMALL)
    buffer = io.BytesIO()
    Image.fromarray(scene).convert("CMYK").save(buffer, "TIFF")
    result = segmenter.segment(buffer.getvalue(), LABELS, size=SMALL)
    assert np.abs(result.image.astype(int) - scene).max() <= 2
    assert agreement(result.segmentation, segmenter.segment(scene, LABELS, size=SMALL).segmentation) > 0.9


@pytest.mark.parametrize(("orientation", "turn"), [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)])
def test_photographs_are_turned_upright(
    segmenter: ovseg.Segmenter, scene: Picture, orientation: int, turn: Callable[[Picture], Picture]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = segmenter.segment(png(scene, exif=exif), LABELS, size=SMALL)
    upright = np.ascontiguousarray(turn(scene))
    assert result.segmentation.shape == upright.shape[:2]
    assert result == segmenter.segment(upright, LABELS, size=SMALL)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 1), (3, 5), (31, 33), (1, 5000), (2000, 3000)], ids=lambda shape: f"{shape[0]}x{shape[1]}"
)
def test_every_shape_works(segmenter: ovseg.Segmenter, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    result = segmenter.segment(image, LABELS, size=SMALL if min(shape) > 1000 else None)
    assert result.segmentation.shape == shape
    assert np.array_equal(result.image, image)
    assert np.isfinite(segmenter.classify(image[:40, :40], LABELS).scores).all()


def test_damaged_files_and_numbers_are_refused(segmenter: ovseg.Segmenter, scene: Picture, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(png(scene)[:2000])
    nan = np.full((8, 8, 3), np.nan, np.float32)
    for image in (broken, str(broken), png(scene)[:2000], b"", b"no image", tmp_path, tmp_path / "none.png", nan, nan + np.inf, nan[:0]):
        with pytest.raises(InvalidImageError):
            segmenter.segment(image, LABELS)


def test_a_bomb_is_refused_unopened(segmenter: ovseg.Segmenter) -> None:
    content = bytearray(png(np.zeros((1, 1, 3), np.uint8)))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(InvalidImageError, match="pixels"):
        segmenter.segment(bytes(content), LABELS)


def test_random_bytes_in_a_file_never_surprise(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    random = np.random.default_rng(3)
    files = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(scene[:24, :32]).save(buffer, kind)
        files.append(buffer.getvalue())
    outcomes = set()
    for number in range(60):
        content = bytearray(files[number % len(files)])
        for place in random.integers(0, len(content), 3):
            content[place] = random.integers(0, 256)
        try:
            outcomes.add(segmenter.segment(bytes(content), LABELS, size=32).segmentation.ndim)
        except OvsegError as error:
            outcomes.add(type(error))
    assert outcomes <= {2, InvalidImageError}
    assert 2 in outcomes


# ----------------------------------------------------------------------------------------------------------------- labels


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)))
def test_the_order_of_labels_does_not_matter(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, order: list[int]) -> None:
    plain = segmenter.segment(features, LABELS, scores=True)
    shuffled = segmenter.segment(features, [LABELS[i] for i in order], scores=True)
    assert agreement(np.array(order)[shuffled.segmentation], plain.segmentation) > 0.999
    assert np.abs(shuffled.scores - plain.scores[order]).max() < 1e-5


@pytest.fixture(scope="module")
def features(segmenter: ovseg.Segmenter, scene: Picture) -> ovseg.ImageFeatures:
    return segmenter.encode_image(scene, size=SMALL)


def test_one_label_is_held_against_everything_else(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    for labels in ("sky", ["sky"], [("sky", "heaven")]):
        result = segmenter.segment(features, labels, scores=True)
        assert result.labels == ("sky",)
        assert result.mask("sky")[:40].mean() > 0.9
        assert result.mask("sky")[60:].mean() < 0.1
        assert 0 < result.scores.min() < result.scores.max() < 1
    assert segmenter.classify(features, "sky").scores.tolist() == [1]


@pytest.fixture(scope="module")
def quick(segmenter: ovseg.Segmenter) -> ovseg.Segmenter:
    """A segmenter for many labels: without weights, and with one prompt for each."""
    card = dataclasses.replace(find_card("mini"), templates="none")
    return ovseg.Segmenter(card, RandomTowers(), segmenter._model._text._tokenize)


@pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16), (300, np.uint16), (5000, np.uint16)])
def test_many_labels(quick: ovseg.Segmenter, count: int, dtype: type) -> None:
    features = quick.encode_image(np.zeros((60, 70, 3), np.uint8), size=32)
    labels = [f"{noun} {number}" for number in range(1000) for noun in LABELS][:count]
    result = quick.segment(features, labels)
    assert result.segmentation.dtype == dtype
    assert result.ignore_index == np.iinfo(dtype).max
    assert len(result.labels) == count
    assert len(np.unique(result.segmentation)) > 20
    assert agreement(result.segmentation, reference_logits(features, quick.encode_text(labels), 1).argmax(0)) > 0.999


@pytest.mark.parametrize("word", ["👍", "日本語", "кошка", "naïve café", "a" * 1000, "word " * 199, "C++", "&lt;", "100%", "[PAD]", "a\tb"])
def test_every_text_is_a_label(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, word: str) -> None:
    result = segmenter.segment(features, [word, "sky"])
    assert result.labels[1] == "sky"
    vectors = segmenter.encode_text([word, "sky"])
    assert np.isfinite(vectors).all()
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize(
    "labels",
    [
        [],
        "",
        " ",
        ["sky", ""],
        ["sky", "Sky"],
        ["sky", "sky "],
        [("sky", "heaven"), "heaven"],
        ["\u200b"],
        ["a" * 1001],
        None,
        3,
        [3],
        [None],
        {"sky", "grass"},
        {"sky": 1},
        b"sky",
        [[["sky"]]],
        ["\ud800"],
        Path("no/such/file.txt"),
    ],
    ids=lambda labels: repr(labels)[:24],
)
def test_bad_labels_are_refused(segmenter: ovseg.Segmenter, scene: Picture, labels: Any) -> None:
    for job in (segmenter.segment, segmenter.classify):
        with pytest.raises(InvalidLabelsError):
            job(scene, labels)
    with pytest.raises(InvalidLabelsError):
        segmenter.encode_text(labels)


def test_the_best_synonym_speaks_for_its_label(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    apart = segmenter.segment(features, ["sky", "grass", "lawn", "road"]).segmentation
    joined = segmenter.segment(features, ["sky", ("grass", "lawn"), "road"])
    assert joined.labels == ("sky", "grass", "road")
    assert agreement(joined.segmentation, np.array([0, 1, 1, 2])[apart]) > 0.999


def test_scores_and_synonyms(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    words = segmenter.encode_text(["sky", "grass", "lawn", "road"])
    logits = reference_logits(features, words, scale())
    expected = softmax(np.stack([logits[0], np.maximum(logits[1], logits[2]), logits[3]]))
    # The best synonym is chosen between the cells' centres too: both orders of maximum and interpolation agree to a little.
    result = segmenter.segment(features, ["sky", ("grass", "lawn"), "road"], scores=True)
    assert np.abs(result.scores - expected).max() < 1e-3
    assert np.abs(result.scores.sum(0) - 1).max() < 1e-5


def test_a_labels_file_is_a_list(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("# a comment\nsky\n\ngrass; lawn\nroad, street\n", "utf-8")
    expected = segmenter.segment(features, ["sky", ("grass", "lawn"), ("road", "street")])
    assert segmenter.segment(features, path) == expected
    assert segmenter.classify(features, path).labels == ("sky", "grass", "road")


# ------------------------------------------------------------------------------------------------- background, threshold


def test_background_words_take_pixels_away(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    full = segmenter.segment(features, [*LABELS, "wall", "floor"], scores=True)
    part = segmenter.segment(features, LABELS, background=["wall", ("floor", "ground")], scores=True)
    some = segmenter.segment(features, LABELS, background=["wall", "floor"], scores=True)
    assert part.labels == some.labels == tuple(LABELS)
    expected = np.where(full.segmentation >= len(LABELS), 255, full.segmentation)
    assert agreement(some.segmentation, expected) > 0.999
    assert np.abs(some.scores - full.scores[: len(LABELS)]).max() < 1e-5
    assert agreement(segmenter.segment(features, LABELS, background=["wall", "floor"]).segmentation, some.segmentation) > 0.999
    assert (part.scores.sum(0) < 1).all()


def test_background_may_be_one_word_or_a_file(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, tmp_path: Path) -> None:
    path = tmp_path / "others.txt"
    path.write_text("grass\n")
    expected = segmenter.segment(features, ["sky"], background=["grass"])
    assert segmenter.segment(features, "sky", background="grass") == expected
    assert segmenter.segment(features, "sky", background=path) == expected
    rivals = segmenter.segment(features, ["sky", "grass"]).segmentation
    assert agreement(expected.segmentation, np.where(rivals == 1, 255, 0)) > 0.999


def test_background_works_beside_255_labels(quick: ovseg.Segmenter) -> None:
    labels = [f"object number {number}" for number in range(255)]
    others = [f"other number {number}" for number in range(100)]
    features = quick.encode_image(np.zeros((60, 70, 3), np.uint8), size=64)
    result = quick.segment(features, labels, background=others)
    assert (result.segmentation.dtype, result.ignore_index) == (np.uint8, 255)
    full = quick.segment(features, labels + others).segmentation
    assert agreement(result.segmentation, np.where(full >= 255, 255, full)) > 0.999
    assert 0.1 < (result.segmentation == 255).mean() < 0.9


@pytest.mark.parametrize("background", [[], "", "sky", ["Sky"], ["lawn"], [3]])
def test_bad_background_is_refused(segmenter: ovseg.Segmenter, scene: Picture, background: Any) -> None:
    with pytest.raises(InvalidLabelsError, match="background"):
        segmenter.segment(scene, ["sky", ("grass", "lawn")], background=background)


@pytest.mark.parametrize("threshold", [0, 0.3, np.float32(0.5), 1])
def test_threshold_leaves_pixels_undecided(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, threshold: float) -> None:
    scored = segmenter.segment(features, LABELS, scores=True)
    result = segmenter.segment(features, LABELS, threshold=threshold)
    expected = np.where(scored.scores.max(0) < threshold, 255, scored.scores.argmax(0))
    assert agreement(result.segmentation, expected) > 0.999
    assert segmenter.segment(features, LABELS, threshold=threshold, scores=True).segmentation.tolist() == result.segmentation.tolist()


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", True, [0.5]])
def test_bad_threshold_is_refused(segmenter: ovseg.Segmenter, scene: Picture, threshold: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="threshold"):
        segmenter.segment(scene, LABELS, threshold=threshold)


# -------------------------------------------------------------------------------------------------------------- templates


def test_templates_may_be_a_set_a_text_a_function_or_a_list(segmenter: ovseg.Segmenter) -> None:
    def embed(templates: Any) -> NDArray[np.float32]:
        return segmenter.encode_text(["dog", "golden retriever"], templates=templates)

    assert np.array_equal(embed("imagenet-simple"), embed(list(TEMPLATE_SETS["imagenet-simple"].templates)))
    assert np.array_equal(embed("a drawing of {}"), embed(lambda name: f"a drawing of {name}"))
    assert np.array_equal(embed(None), embed(find_card("mini").templates))
    assert np.abs(embed("a drawing of {}") - embed("none")).max() > 0.01
    parts = [embed("a drawing of {}"), embed("none"), embed("the plastic {}.")]
    mean = np.mean(parts, 0)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.abs(embed(["a drawing of {}", "none", lambda name: f"the plastic {name}."]) - expected).max() < 1e-5


def test_templates_reach_segment_and_classify(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    plain = segmenter.segment(features, LABELS, scores=True)
    other = segmenter.segment(features, LABELS, scores=True, templates="a tattoo of a {}")
    assert np.abs(plain.scores - other.scores).max() > 1e-4
    same = segmenter.segment(features, [f"a tattoo of a {label}" for label in LABELS], scores=True, templates="none")
    assert np.abs(same.scores - other.scores).max() < 1e-5
    first, second = (segmenter.classify(features, LABELS, templates=t).scores for t in (None, "a tattoo of a {}"))
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize("templates", [[], "imagnet", "no braces", "{} {}", 3, [3], lambda name: "", lambda name: 3])
def test_bad_templates_are_refused(segmenter: ovseg.Segmenter, scene: Picture, templates: Any) -> None:
    with pytest.raises(InvalidLabelsError):
        segmenter.segment(scene, LABELS, templates=templates)


# ----------------------------------------------------------------------------------------------------------- size, window


@pytest.mark.parametrize(
    ("size", "grid"), [(64, (16, 21.5)), (96, (24, 32)), ("native", (24, 32)), (np.int64(128), (32, 43)), (None, (96, 128))]
)
def test_size_is_the_short_side(segmenter: ovseg.Segmenter, scene: Picture, size: Any, grid: tuple[float, float]) -> None:
    features = segmenter.encode_image(scene, size=size)
    assert features.embedding.shape[0] == 384
    assert features.embedding.shape[1:] == pytest.approx(grid, abs=4)  # sides are rounded to 32 pixels, 8 cells
    assert features.image_size == (96, 128)
    assert np.abs(np.linalg.norm(features.embedding, axis=0) - 1).max() < 1e-5


def test_native_pads_and_cuts_back(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    features = segmenter.encode_image(scene[:90, :100], size="native")
    assert features.embedding.shape == (384, 24, 32)
    assert features.extent == (22.5, 25)
    assert segmenter.segment(features, LABELS).segmentation.shape == (90, 100)
    # Columns that lie far from the padding do not see it.
    padded = np.pad(scene[:90, :100], ((0, 6), (0, 28), (0, 0)), mode="edge")
    whole = segmenter.segment(padded, LABELS, size="native").segmentation[:90, :100]
    assert agreement(segmenter.segment(features, LABELS).segmentation[:88, :98], whole[:88, :98]) > 0.999


@pytest.mark.parametrize("size", [0, -5, 31, 8193, 64.0, "big", "64", True, float("nan"), [64]])
def test_bad_size_is_refused(segmenter: ovseg.Segmenter, scene: Picture, size: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="size"):
        segmenter.segment(scene, LABELS, size=size)


def test_features_too_large_for_memory_are_refused(segmenter: ovseg.Segmenter) -> None:
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (6000, 8000, 3))
    with pytest.raises(InvalidArgumentError, match="MiB"):
        segmenter.segment(image, LABELS, size="native")


def test_scores_too_large_for_memory_are_refused(
    segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = np.empty

    def empty(shape: Any, *rest: Any, **options: Any) -> Any:
        if shape == (len(LABELS), 96, 128):
            raise MemoryError
        return real(shape, *rest, **options)

    monkeypatch.setattr(np, "empty", empty)
    with pytest.raises(InvalidArgumentError, match="5 labels at 128 x 96 pixels take 0.0 GiB"):
        segmenter.segment(features, LABELS, scores=True)


def test_one_window_is_the_whole(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    whole = segmenter.encode_image(scene, size=SMALL)
    assert np.array_equal(segmenter.encode_image(scene, size=SMALL, window="whole").embedding, whole.embedding)
    assert np.abs(segmenter.encode_image(scene, size=SMALL, window="sliding").embedding - whole.embedding).max() < 1e-5


def test_windows_slide_over_a_large_image(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    wide = np.tile(scene, (1, 6, 1))  # 96 x 768, twice as wide as a window
    sliding = segmenter.encode_image(wide, size="native", window="sliding")
    whole = segmenter.encode_image(wide, size="native")
    assert sliding.embedding.shape == whole.embedding.shape == (384, 24, 192)
    assert np.abs(np.linalg.norm(sliding.embedding, axis=0) - 1).max() < 1e-5
    # Left of the second window only the first one looks; it never sees what is right of it.
    first = segmenter.encode_image(wide[:, :512], size="native")
    second = segmenter.encode_image(wide[:, 256:], size="native")
    assert np.abs(sliding.embedding[:, :, :64] - first.embedding[:, :, :64]).max() < 1e-5
    assert np.abs(sliding.embedding[:, :, 128:] - second.embedding[:, :, 64:]).max() < 1e-5
    assert segmenter.segment(wide, LABELS, size="native", window="sliding").segmentation.shape == (96, 768)


@pytest.mark.parametrize("window", ["slide", "", 512, True])
def test_bad_window_is_refused(segmenter: ovseg.Segmenter, scene: Picture, window: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="window"):
        segmenter.segment(scene, LABELS, window=window)


# -------------------------------------------------------------------------------------------------------------- features


def test_features_give_the_same_answer_for_any_words(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    features = segmenter.encode_image(scene, size=SMALL)
    for labels in (LABELS, ["dog", "cat"], "tree", [("car", "automobile"), "sky"]):
        assert segmenter.segment(features, labels, scores=True) == segmenter.segment(scene, labels, size=SMALL, scores=True)
    assert np.array_equal(segmenter.segment(features, LABELS).image, scene)
    assert segmenter.encode_image(features) is features


def test_classify_sees_what_its_features_show(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    features = segmenter.encode_image(scene, size=224)
    assert segmenter.classify(features, LABELS) == segmenter.classify(scene, LABELS)


def test_size_and_window_belong_to_encode_image(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    for options in ({"size": 64}, {"window": "sliding"}):
        with pytest.raises(InvalidArgumentError, match="encode_image"):
            segmenter.segment(features, LABELS, **options)
        with pytest.raises(InvalidArgumentError, match="encode_image"):
            segmenter.encode_image(features, **options)


def test_features_of_another_model_are_refused(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    with pytest.raises(InvalidArgumentError, match="other"):
        segmenter.segment(dataclasses.replace(features, model="other"), LABELS)


def test_features_survive_pickling(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    again = pickle.loads(pickle.dumps(features))
    assert segmenter.segment(again, LABELS) == segmenter.segment(features, LABELS)
    assert repr(again) == repr(features)
    assert len(repr(features)) < 200


def test_nothing_given_out_can_be_changed(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    features = segmenter.encode_image(scene, size=SMALL)
    result = segmenter.segment(features, LABELS, scores=True)
    answer = segmenter.classify(features, LABELS)
    for array in (features.embedding, features.image, result.segmentation, result.scores, result.image, answer.scores):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    for value, name in ((features, "model"), (result, "labels"), (answer, "scores")):
        with pytest.raises((AttributeError, TypeError)):
            setattr(value, name, None)


def test_the_callers_array_stays_the_callers(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    frame = scene.copy()
    for image in (frame, frame[:, :, :]):
        result = segmenter.segment(image, LABELS, size=SMALL)
        features = segmenter.encode_image(image, size=SMALL)
        image[:] = 0  # the next frame of a video arrives in the same memory
        assert np.array_equal(result.image, scene)
        assert np.array_equal(features.image, scene)
        image[:] = scene


def test_the_callers_tensor_stays_the_callers(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(scene.copy()).permute(2, 0, 1)  # in memory it is an array (H, W, 3)
    result = segmenter.segment(tensor, LABELS, size=SMALL)
    tensor.zero_()
    assert np.array_equal(result.image, scene)


def test_encoded_text_cannot_spoil_the_cache(segmenter: ovseg.Segmenter) -> None:
    first = segmenter.encode_text(["sky", "grass"])
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(segmenter.encode_text(["sky", "grass"]), kept)


# ------------------------------------------------------------------------------------------------------------------ text


def test_text_embeddings_are_unit_vectors_in_label_order(segmenter: ovseg.Segmenter) -> None:
    vectors = segmenter.encode_text(LABELS)
    assert vectors.shape == (5, 384)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert segmenter.encode_text("sky").shape == (1, 384)
    assert np.array_equal(segmenter.encode_text(LABELS[::-1]), vectors[::-1])


def test_a_text_does_not_depend_on_its_batch(segmenter: ovseg.Segmenter) -> None:
    fresh = ovseg.load(device="cpu")
    texts = ["sky", "a much longer label about a red car " * 4, "grass"]
    together = fresh.encode_text(texts)
    alone = np.concatenate([ovseg.load(device="cpu").encode_text(texts[:1]), segmenter.encode_text(texts[1:])])
    assert np.abs(together - alone).max() < 1e-5


def test_synonyms_of_a_text_are_averaged(segmenter: ovseg.Segmenter) -> None:
    words = segmenter.encode_text(["grass", "lawn"])
    mean = words.mean(0) / np.linalg.norm(words.mean(0))
    assert np.abs(segmenter.encode_text([("grass", "lawn")]) - mean).max() < 1e-5


# -------------------------------------------------------------------------------------------------------------- classify


def test_classification_is_a_distribution(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    answer = segmenter.classify(scene, LABELS)
    assert answer.labels == tuple(LABELS)
    assert answer.model == "mini"
    assert answer.scores.dtype == np.float32
    assert answer.scores.sum() == pytest.approx(1, abs=1e-5)
    assert answer.label == answer.top(1)[0][0]
    shuffled = segmenter.classify(scene, LABELS[::-1])
    assert np.abs(shuffled.scores[::-1] - answer.scores).max() < 1e-5


def test_classify_follows_the_definition(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    embedding = segmenter.encode_image(scene, size=224).embedding
    pooled = embedding.reshape(384, -1).mean(1)
    words = segmenter.encode_text(["sky", "grass", "lawn"])
    logits = scale() * words @ (pooled / np.linalg.norm(pooled))
    expected = softmax(np.array([logits[0], max(logits[1:])], np.float32))
    assert np.abs(segmenter.classify(scene, ["sky", ("grass", "lawn")]).scores - expected).max() < 1e-5


# ----------------------------------------------------------------------------------------------------------------- shared


def test_threads_share_a_segmenter(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    fresh = ovseg.load(device="cpu", threads=1)  # its towers are not loaded yet: that happens in the threads too
    start = threading.Barrier(4)
    jobs = [(scene[: 60 + 4 * i], [*LABELS[i % 3 :], f"thing {i}"]) for i in range(8)]

    def work(part: int) -> list[ovseg.Segmentation]:
        start.wait()
        return [fresh.segment(image, labels, size=SMALL) for image, labels in jobs[part::4]]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    for part in range(4):
        for (image, labels), result in zip(jobs[part::4], results[part], strict=True):
            expected = segmenter.segment(image, labels, size=SMALL)
            assert agreement(result.segmentation, expected.segmentation) > 0.999


def test_functions_load_the_model_once(scene: Picture, segmenter: ovseg.Segmenter) -> None:
    result = ovseg.segment(scene, LABELS, size=SMALL, device="cpu")
    assert result == segmenter.segment(scene, LABELS, size=SMALL)
    assert ovseg.classify(scene, LABELS, model="mini", device="cpu") == segmenter.classify(scene, LABELS)
    from ovseg.segmenter import _loaded

    assert _loaded("mini", "cpu") is _loaded("mini", "cpu")
    options: dict[str, Any] = {"background": "wall", "threshold": 0.9, "templates": "a {}", "scores": True, "window": "whole"}
    assert ovseg.segment([scene], LABELS, size=SMALL, device="cpu", **options) == [
        segmenter.segment(scene, LABELS, size=SMALL, **options)
    ]


@pytest.mark.parametrize("model", ["mimi", "", "mini ", None, 3, ["mini"], Path("mini")])
def test_unknown_models_are_refused(scene: Picture, model: Any) -> None:
    with pytest.raises(UnknownModelError):
        ovseg.load(model)
    for job in (ovseg.segment, ovseg.classify):
        with pytest.raises(UnknownModelError):
            job(scene, LABELS, model=model)


def test_a_misspelt_model_is_guessed() -> None:
    with pytest.raises(UnknownModelError, match="Did you mean 'mini'"):
        ovseg.load("mimi")


def test_models_are_listed() -> None:
    cards = ovseg.list_models()
    assert "mini" in [card.name for card in cards]
    assert all(isinstance(card, ovseg.ModelCard) and card.license for card in cards)


# --------------------------------------------------------------------------------------------------------------- runtimes


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "tensorflow"},
        {"backend": []},
        {"device": "gpu"},
        {"device": 0},
        {"dtype": "float16"},
        {"dtype": np.float32},
        {"threads": 0},
        {"threads": 1.5},
        {"threads": True},
    ],
    ids=str,
)
def test_bad_options_of_load_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        ovseg.load(**options)


def test_segmenter_says_where_it_runs(segmenter: ovseg.Segmenter) -> None:
    assert (segmenter.name, segmenter.device) == ("mini", "onnx:cpu")
    assert repr(segmenter) == "Segmenter('mini', 'onnx:cpu')"


def test_torch_equals_onnx(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    pytest.importorskip("torch")
    other = ovseg.load(backend="torch", device="cpu")
    assert other.device == "torch:cpu"
    for image in (scene, scene[:50, :90]):
        first, second = (each.encode_image(image, size=SMALL) for each in (segmenter, other))
        assert np.abs(first.embedding - second.embedding).max() < 1e-4
        maps = [each.segment(image, LABELS, size=SMALL).segmentation for each in (segmenter, other)]
        assert agreement(*maps) > 0.999
    assert np.array_equal(segmenter.encode_text(LABELS), other.encode_text(LABELS))
    assert other.segment(segmenter.encode_image(scene, size=SMALL), LABELS) == segmenter.segment(scene, LABELS, size=SMALL)


def test_compile_is_refused_where_there_is_no_torch() -> None:
    with pytest.raises(InvalidArgumentError, match="compile=True is for torch, and 'mini' runs with onnxruntime here.*backend='torch'"):
        ovseg.load("mini", compile=True)


@pytest.mark.parametrize(("dtype", "likeness"), [("float16", 0.999), ("bfloat16", 0.95)])
def test_torch_in_half_precision_is_near(segmenter: ovseg.Segmenter, scene: Picture, dtype: str, likeness: float) -> None:
    pytest.importorskip("torch")
    features = ovseg.load(backend="torch", device="cpu", dtype=dtype).encode_image(scene, size=SMALL)
    assert features.embedding.dtype == np.float32
    assert np.abs(np.linalg.norm(features.embedding, axis=0) - 1).max() < 1e-5
    cosine = (features.embedding * segmenter.encode_image(scene, size=SMALL).embedding).sum(0)
    assert cosine.mean() > likeness


@pytest.mark.parametrize(("options", "error"), [({"device": "nonsense"}, BackendError), ({"dtype": "int8"}, InvalidArgumentError)])
def test_torch_refuses_what_it_cannot(options: dict[str, Any], error: type[OvsegError]) -> None:
    pytest.importorskip("torch")
    with pytest.raises(error, match=next(iter(options.values()))):
        ovseg.load(backend="torch", **options)


def test_torch_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ovseg\[torch\]'"):
        ovseg.load(backend="torch")


def test_two_builds_of_onnxruntime_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.25.0")
    with pytest.raises(MissingDependencyError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        ovseg.load()


def test_missing_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    onnx_runtime.check_installation()  # a build under another name is there
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        ovseg.load()


@pytest.mark.parametrize("providers", [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]])
def test_cuda_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch, providers: list[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnx_runtime, "has_nvidia_gpu", lambda: False)
    advice = "see to its driver" if "CUDAExecutionProvider" in providers else "pip install onnxruntime-gpu"
    with pytest.raises(BackendError, match=f"device='cuda'.*{advice}"):
        ovseg.load(device="cuda")
    assert ovseg.load().device == "onnx:cpu"


class FallenBack:
    """A session that was asked for the GPU and took the CPU."""

    def __init__(self, *_: object, providers: list[str]) -> None:
        print("EP Error: Falling back to ['CPUExecutionProvider']")  # as onnxruntime does
        self.wanted = providers

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def run(self, _: object, feeds: dict[str, Any]) -> list[NDArray[np.float32]]:
        return [np.ones((len(feeds["input_ids"]), 384), np.float32)]


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    monkeypatch.setattr(onnx_runtime, "has_nvidia_gpu", lambda: True)


@pytest.mark.usefixtures("broken_gpu")
def test_float32_is_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Noted(FallenBack):
        def __init__(self, *arguments: object, providers: list[Any]) -> None:
            asked.append(providers)

    monkeypatch.setattr("onnxruntime.InferenceSession", Noted)
    ovseg.load().encode_text("sky")
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]]


@pytest.mark.usefixtures("broken_gpu")
def test_cuda_that_falls_back_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    segmenter = ovseg.load(device="cuda")
    with pytest.raises(BackendError, match="fell back to the CPU"):
        segmenter.encode_text("sky")
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("broken_gpu")
def test_a_gpu_that_does_not_work_is_left_with_a_warning(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = ovseg.load()
    assert segmenter.encode_text("sky").shape == (1, 384)
    assert segmenter.device == "onnx:cpu"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fell back to the CPU" in caplog.text
    assert capsys.readouterr().out == ""


def test_threads_that_load_at_once_give_stdout_back() -> None:
    before, entered, inside, left = sys.stdout, threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with onnx_runtime._quiet():
            entered.set()
            inside.wait(0.2)
        left.set()

    def second() -> None:
        entered.wait()
        with onnx_runtime._quiet():
            inside.set()
            left.wait(0.2)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is before


def test_a_session_that_fails_is_a_backend_error(segmenter: ovseg.Segmenter) -> None:
    runtime = segmenter._model._runtime
    with pytest.raises(BackendError, match="image graph"):
        runtime.encode_image(np.zeros((1, 4, 32, 32), np.float32))


@pytest.mark.parametrize("name", ["image.onnx", "image.safetensors", "text.onnx", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Picture, name: str, damage: str) -> None:
    from ovseg import registry

    folder = registry.weights_folder(registry.find_card("mini"))
    package = tmp_path / "ovseg"
    (package / "weights").mkdir(parents=True)
    copy = package / "weights" / "mini"
    copy.mkdir()
    for file in folder.iterdir():  # no links: onnxruntime does not follow them out of a model's folder
        if file.name in (name, "image.onnx", "image.safetensors"):
            shutil.copy(file, copy / file.name)
        else:
            (copy / file.name).symlink_to(file)
    if damage == "missing":
        (copy / name).unlink()
    else:
        with (copy / name).open("r+b") as file:
            file.truncate(0 if damage == "empty" else 20_000)
    monkeypatch.setattr(registry.resources, "files", lambda _: package)
    with pytest.raises(WeightsError, match=name.replace("image.safetensors", "image")):
        segmenter = ovseg.load("mini", device="cpu")
        segmenter.segment(scene, LABELS, size=32)


def test_damaged_weights_are_named_with_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    numpy = pytest.importorskip("safetensors.numpy")

    (tmp_path / "short.safetensors").write_bytes(b"short")
    numpy.save_file({"stem.weight": np.zeros(3, np.float16)}, tmp_path / "other.safetensors")
    for name in ("short.safetensors", "other.safetensors", "missing.safetensors"):
        with pytest.raises(WeightsError, match=name):
            ovseg.load("mini", backend="torch", weights=tmp_path / name)


# --------------------------------------------------------------------------------------------------------------- imports


def python(code: str, *arguments: str) -> str:
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_is_light() -> None:
    heavy = python(
        "import sys, ovseg; ovseg.__version__; dir(ovseg)\n"
        "print(*({'numpy', 'PIL', 'torch', 'onnxruntime', 'tokenizers', 'urllib.request', 'ovseg.segmenter'} & set(sys.modules)))"
    )
    assert heavy.split() == []


def test_the_errors_need_no_numpy() -> None:
    assert python("import sys; from ovseg import OvsegError, WeightsError; print('numpy' in sys.modules)").strip() == "False"


def test_segmenting_needs_only_the_runtime(scene: Picture, tmp_path: Path) -> None:
    """`ovseg segment` works where nothing but its declared dependencies can be imported."""
    Image.fromarray(scene).save(tmp_path / "scene.png")
    code = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

BLOCKED = {"torch", "torchvision", "transformers", "timm", "open_clip", "safetensors", "onnx", "scipy", "skimage", "sklearn", "cv2",
           "matplotlib", "pandas", "supervision"}
sys.meta_path.insert(0, Blocker())
from ovseg.cli import main
status = main(["segment", sys.argv[1], "sky", "grass", "--size", "32", "-o", sys.argv[2], "--format", "overlay", "--format", "png"])
status += main(["classify", sys.argv[1], "sky", "grass"])
print("blocked modules:", sorted(BLOCKED & set(sys.modules)))
sys.exit(status)
"""
    out = python(code, str(tmp_path / "scene.png"), str(tmp_path / "out"))
    assert out.splitlines()[-1] == "blocked modules: []"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scene.overlay.png", "scene.png"]
