"""Edges: each method against a direct computation, and what holds for all of them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import cdist

import ovseg
from ovseg import refine as rooms
from ovseg.cli import main
from ovseg.errors import InvalidArgumentError
from ovseg.evaluation.boundaries import BoundaryIou
from ovseg.refine import METHODS, labels_that_matter, refine, tiles, working_step
from ovseg.refine.crf import Crf
from ovseg.refine.filters import box_mean, gaussian_sum, shrink
from ovseg.refine.guided import Guided, applied
from ovseg.refine.pamr import Pamr


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(0))
    return (shares / shares.sum(0)).astype(np.float32)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A few noisy patches of colour, (H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    patches = random.integers(40, 216, (height // 6 + 1, width // 6 + 1, 3))
    large = np.kron(patches, np.ones((6, 6, 1), int))[:height, :width]
    return (large + random.integers(-6, 7, large.shape)).astype(np.uint8)


def scores_of(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth scores, (K, H, W) float32, that sum to 1."""
    random = np.random.default_rng(seed)
    noise = np.pad(random.standard_normal((count, height, width)).astype(np.float32), ((0, 0), (3, 3), (3, 3)), mode="wrap")
    return softmax(9 * box_mean(noise, 2)[:, 3:-3, 3:-3])


def planes(image: np.ndarray) -> np.ndarray:
    return image.transpose(2, 0, 1).astype(np.float32) / 255


# ---------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(("size", "step"), [((7, 9), 3), ((6, 4), 2), ((5, 5), 1), ((2, 3), 8)])
def test_shrink_is_the_mean_of_blocks(size, step):
    maps = np.random.default_rng(0).random((2, *size)).astype(np.float32)
    small = shrink(maps, step)
    for k, i, j in np.ndindex(small.shape):
        assert small[k, i, j] == pytest.approx(maps[k, i * step : (i + 1) * step, j * step : (j + 1) * step].mean(), abs=1e-6)
    assert small.shape[1:] == (-(-size[0] // step), -(-size[1] // step))


@pytest.mark.parametrize("radius", [0, 1, 3, 12])
def test_box_mean(radius):
    values = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    result = box_mean(values, radius)
    for i, j in np.ndindex(values.shape):
        window = values[max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
        assert result[i, j] == pytest.approx(window.mean(), abs=1e-6)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.5])
def test_gaussian_sum(deviation):
    values = np.random.default_rng(0).random((8, 5)).astype(np.float32)
    places = np.array(list(np.ndindex(values.shape)), float)
    weights = np.exp(-cdist(places, places, "sqeuclidean") / (2 * deviation**2))
    np.testing.assert_allclose(gaussian_sum(values, deviation).ravel(), weights @ values.ravel(), atol=2e-3)


# -------------------------------------------------------------------------------------------------------- guided filter


def test_guided_filter_is_a_ridge_regression_in_every_window():
    image, score = planes(picture(9, 11)), scores_of(2, 9, 11)
    radius, epsilon = 2, 1e-3
    functions = Guided(radius, epsilon).functions(score, image)
    fitted = np.empty((4, 2, 9, 11))
    for i, j in np.ndindex(9, 11):
        window = np.s_[:, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
        colours, values = image[window].reshape(3, -1).T.astype(float), score[window].reshape(2, -1).T.astype(float)
        centred = colours - colours.mean(0)
        penalty = len(centred) * epsilon * np.eye(3)
        slopes = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (values - values.mean(0)))
        fitted[:3, :, i, j] = slopes
        fitted[3, :, i, j] = values.mean(0) - colours.mean(0) @ slopes
    for i, j in np.ndindex(9, 11):
        window = np.s_[:, :, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
        np.testing.assert_allclose(functions[:, :, i, j], fitted[window].mean((2, 3)), atol=2e-3)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_what_is_linear_in_the_colour_survives_shrinking(step):
    """The full detail comes back: it is in the image."""
    image = picture(24, 32)
    wanted = np.tensordot(np.array([[0.2, 0.5, -0.3], [-0.1, 0.1, 0.2]]), planes(image), 1).astype(np.float32) + 0.3
    small = shrink(wanted, step)
    result = applied(Guided(2, 1e-7).functions(small, shrink(image.transpose(2, 0, 1), step) / np.float32(255)), image, step)
    np.testing.assert_allclose(result, wanted, atol=0.01)


def test_a_great_epsilon_blurs():
    image, score = planes(picture(12, 12)), scores_of(1, 12, 12)
    functions = Guided(2, 1e6).functions(score, image)
    np.testing.assert_allclose(functions[:3], 0, atol=1e-5)
    np.testing.assert_allclose(functions[3], box_mean(box_mean(score, 2), 2), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------------- crf


def mean_field(scores: np.ndarray, image: np.ndarray, crf: Crf) -> np.ndarray:
    """All pairs of pixels, with the true Gaussians."""
    count, height, width = scores.shape
    places = np.array(list(np.ndindex(height, width)), float)
    colours = image.reshape(3, -1).T.astype(float)
    far = np.exp(-cdist(places, places, "sqeuclidean") / (2 * crf.reach**2) - cdist(colours, colours, "sqeuclidean") / (2 * crf.colour**2))
    near = np.exp(-cdist(places, places, "sqeuclidean") / (2 * crf.near**2))
    potts = np.zeros_like(far)
    for weight, kernel in ((crf.appearance, far), (crf.smoothness, near)):
        share = 1 / np.sqrt(kernel.sum(1))
        potts += weight * kernel * share[:, None] * share
    unary = np.log(scores.reshape(count, -1).astype(float))
    result = np.exp(unary)
    for _ in range(crf.iterations):
        energy = np.zeros_like(unary)
        for k in range(count):  # what it costs to be k: the mass of all other labels among those alike
            energy[k] = sum(potts @ result[other] for other in range(count) if other != k)
        result = np.exp(unary - energy)
        result /= result.sum(0)
    return result.reshape(scores.shape)


@pytest.mark.parametrize("crf", [Crf(3, 6, 0.3, 0.5, 1, 5), Crf(3, 10, 0.5, 0, 1, 3), Crf(0, 6, 0.2, 2, 1.5, 5), Crf(8, 4, 0.25, 1, 1, 1)])
def test_crf_is_mean_field_over_all_pairs(crf):
    image, scores = planes(picture(18, 22, 3)), scores_of(3, 18, 22, 3)
    result, wanted = crf(scores, image), mean_field(scores, image, crf)
    assert np.abs(result - scores).max() > 0.1  # else there is nothing to compare
    assert np.abs(result - wanted).mean() < 0.02
    assert np.abs(result - wanted).max() < 0.2  # the lattice is not exact
    assert (result.argmax(0) == wanted.argmax(0)).mean() > 0.97


def test_crf_without_weights_or_steps_changes_nothing():
    image, scores = planes(picture(10, 12)), scores_of(3, 10, 12)
    np.testing.assert_allclose(Crf(0, 6, 0.2, 0, 1, 5)(scores, image), scores, atol=1e-6)
    np.testing.assert_array_equal(Crf(3, 6, 0.2, 1, 1, 0)(scores, image), scores)


def test_crf_with_scores_of_zero():
    image, scores = planes(picture(10, 12)), np.zeros((2, 10, 12), np.float32)
    scores[0, :, :6] = scores[1, :, 6:] = 1
    assert np.isfinite(Crf(3, 6, 0.2, 1, 1, 5)(scores, image)).all()


# ------------------------------------------------------------------------------------------------------------------ pamr


def test_pamr_pixel_by_pixel():
    image, scores = planes(picture(8, 10)), scores_of(2, 8, 10)
    dilations, height, width = (1, 2, 4), 8, 10
    steps = [(d * a, d * b) for d in dilations for a in (-1, 0, 1) for b in (-1, 0, 1)]

    def at(maps: np.ndarray, i: int, j: int) -> np.ndarray:
        return maps[:, min(max(i, 0), height - 1), min(max(j, 0), width - 1)].astype(float)

    wanted = scores.astype(float)
    for _ in range(2):
        result = np.empty_like(wanted)
        for i, j in np.ndindex(height, width):
            deviation = np.std([at(image, i + a, j + b) for a, b in steps], axis=0, ddof=1)
            around = [(a, b) for a, b in steps if (a, b) != (0, 0)]
            near = np.array([at(image, i + a, j + b) for a, b in around])
            affinity = np.exp(-(np.abs(near - at(image, i, j)) / (1e-8 + 0.1 * deviation)).mean(1))
            result[:, i, j] = affinity @ [at(wanted, i + a, j + b) for a, b in around] / affinity.sum()
        wanted = result
    np.testing.assert_allclose(Pamr(dilations, 2)(scores, image), wanted, atol=1e-4)
    own = refine(scores, picture(8, 10), Pamr(dilations, 2), step=1)  # all labels matter, and nothing is shrunk
    np.testing.assert_allclose(own, wanted, atol=1e-4)


def test_pamr_as_published():
    assert Pamr() == Pamr((1, 2, 4, 8, 12, 24), 10)


# ----------------------------------------------------------------------------------------------------- tiles and labels


@pytest.mark.parametrize(("size", "side", "overlap"), [((10, 10), 16, 4), ((50, 33), 16, 4), ((16, 17), 16, 7), ((1, 40), 8, 2)])
def test_tiles_cover_and_their_weights_sum_to_one(size, side, overlap):
    total = np.zeros(size)
    for rows, columns, weight in tiles(size, side, overlap):
        assert weight.shape == total[rows, columns].shape
        assert max(weight.shape) <= side and weight.min() > 0
        total[rows, columns] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_labels_that_matter():
    scores = np.full((5, 4, 4), 0.01, np.float32)
    scores[3] = 0.9
    scores[1, 2, 2] = 0.5
    assert labels_that_matter(scores, 0.2, 9) == [1, 3]
    assert labels_that_matter(scores, 0.9, 9) == [3]
    assert labels_that_matter(scores, 0.001, 2) == [1, 3]
    assert labels_that_matter(np.zeros((2, 3, 3), np.float32), 0.5, 9) == [0, 1]


def test_many_tiles_are_near_one(monkeypatch):
    image, scores = picture(90, 130), scores_of(4, 90, 130)
    monkeypatch.setattr(rooms, "TILES", dict.fromkeys(METHODS, (384, 48)))
    whole = {method: refine(scores, image, method, step=1) for method in METHODS}
    monkeypatch.setattr(rooms, "TILES", dict.fromkeys(METHODS, (64, 24)))
    for method, wanted in whole.items():
        result = refine(scores, image, method, step=1)
        assert np.abs(result - wanted).mean() < (0.02 if method == "crf" else 1e-3), method  # which reaches as far as the tiles
        assert (result.argmax(0) == wanted.argmax(0)).mean() > (0.999 if method == "guided" else 0.96), method


def test_labels_that_do_not_matter_stay():
    image = picture(48, 60)
    scores = np.full((200, 48, 60), 0.2 / 198, np.float32)
    scores[[17, 90]] = 0.8 * scores_of(2, 48, 60)
    for method in METHODS:
        result = refine(scores, image, method, step=2)
        rest = np.delete(np.arange(200), [17, 90])
        np.testing.assert_array_equal(result[rest], scores[rest])
        assert np.abs(result[17] - scores[17]).max() > 0.05


# ------------------------------------------------------------------------------------------------------------ all methods

every = pytest.mark.parametrize("method", METHODS)


@every
@pytest.mark.parametrize("step", [None, 1, 2, 3])
def test_scores_stay_scores(method, step):
    image, scores = picture(37, 50), scores_of(5, 37, 50)
    given_scores, given_image = scores.copy(), image.copy()
    result = refine(scores, image, method, step=step)
    assert result.shape == scores.shape and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(scores, given_scores)
    np.testing.assert_array_equal(image, given_image)


@every
def test_the_sum_of_scores_stays_where_it_is_not_one(method):
    image, scores = picture(30, 40), scores_of(3, 30, 40) * np.linspace(0, 1, 40, dtype=np.float32)
    result = refine(scores, image, method, step=2)
    np.testing.assert_allclose(result.sum(0), scores.sum(0), atol=1e-5)
    assert np.isfinite(result).all()


@every
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 2), (3, 200)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_sizes(method, size, count):
    scores = softmax(np.random.default_rng(0).standard_normal((count, *size)))
    image = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    for step in (None, 1, 4):
        result = refine(scores, image, method, step=step)
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)
    if count == 1 or size == (1, 1):
        np.testing.assert_allclose(result, scores, atol=1e-4 if method != "crf" else 1)


@every
@pytest.mark.parametrize("colour", [0, 77, 255])
def test_constant_images(method, colour):
    scores = scores_of(3, 40, 50)
    result = refine(scores, np.full((40, 50, 3), colour, np.uint8), method, step=2)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)


@every
def test_one_label_everywhere_stays(method):
    scores = np.zeros((4, 30, 36), np.float32)
    scores[2] = 1
    np.testing.assert_allclose(refine(scores, picture(30, 36), method, step=2), scores, atol=1e-6)


@every
def test_even_scores_stay(method):
    """Where nothing is known of any label, no edge makes it known."""
    scores = np.empty((3, 30, 36), np.float32)
    scores[:] = np.array([0.5, 0.3, 0.2])[:, None, None]
    result = refine(scores, picture(30, 36), method, step=2)
    if method == "crf":  # agreement makes sure, but alike everywhere
        assert (result.argmax(0) == 0).all()
    else:
        np.testing.assert_allclose(result, scores, atol=1e-4)


@every
def test_the_order_of_labels_does_not_matter(method):
    image, scores = picture(33, 40), scores_of(5, 33, 40)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(refine(scores[order], image, method, step=2), refine(scores, image, method, step=2)[order], atol=1e-4)


@every
@pytest.mark.parametrize("axis", [0, 1])
def test_mirror_images_have_mirrored_scores(method, axis):
    """The CRF's lattice is not mirror-symmetric, so there it holds only nearly."""
    image, scores = picture(40, 48), scores_of(4, 40, 48)
    result = refine(np.flip(scores, axis + 1), np.flip(image, axis), method, step=2)
    wanted = np.flip(refine(scores, image, method, step=2), axis + 1)
    assert np.abs(result - wanted).mean() < (0.01 if method == "crf" else 1e-5)
    assert (result.argmax(0) == wanted.argmax(0)).mean() > 0.99


@every
def test_edges_move_to_the_edges_of_the_image(method):
    image = np.full((60, 90, 3), 60, np.uint8)
    image[:, 41:] = (150, 120, 60)
    image[20:40, 60:75] = (60, 60, 200)
    image += np.random.default_rng(0).integers(0, 8, image.shape).astype(np.uint8)
    truth = np.zeros((60, 90), int)
    truth[:, 41:] = 1
    truth[20:40, 60:75] = 2
    coarse = box_mean(np.stack([truth == k for k in range(3)]).astype(np.float32), 6)  # what a network says of large cells
    coarse = np.roll(coarse, 2, axis=2)
    before = (coarse.argmax(0) == truth)[:, 5:-5].mean()
    after = (refine(coarse, image, method, step=2).argmax(0) == truth)[:, 5:-5].mean()
    assert 1 - after < 0.7 * (1 - before)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(METHODS)), st.integers(1, 30), st.integers(1, 30), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_anything_goes(method, height, width, count, step, seed):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    scores = softmax(random.standard_normal((count, height, width)) * random.choice([0, 1, 100]))
    result = refine(scores, image, method, step=step)
    assert np.isfinite(result).all() and result.min() >= 0
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-4)


def test_read_only_and_float64_and_views():
    image, scores = picture(20, 24)[:, ::-1], scores_of(3, 20, 24).astype(np.float64)[::-1]
    image.setflags(write=False)
    scores.setflags(write=False)
    assert refine(scores, image).dtype == np.float32


def test_working_step():
    assert [working_step(size) for size in ((1, 1), (120, 500), (360, 480), (1080, 1920))] == [1, 1, 3, 9]
    assert working_step((360, 480), (23, 30)) == 3  # large cells do not make the image coarser
    assert working_step((3000, 4000), (750, 1000)) == 4  # small ones make it finer


def test_refuses():
    image, scores = picture(8, 9), scores_of(2, 8, 9)
    for method in ("Crf", None, 3, ["crf"], Pamr):
        with pytest.raises(InvalidArgumentError, match="'guided', 'crf', 'pamr'"):
            refine(scores, image, method)
    for step in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="step"):
            refine(scores, image, step=step)
    broken = scores.copy()
    broken[0, 0, 0] = np.nan
    for bad in (broken, -scores, scores * 3, scores[:, :-1], scores[0], scores[:0], scores.astype(int), "scores"):
        with pytest.raises(InvalidArgumentError, match=r"scores|label"):
            refine(bad, image)
    for bad in (image[..., :2], image.astype(float), image[0], None):
        with pytest.raises(InvalidArgumentError, match="image"):
            refine(scores, bad)


# ------------------------------------------------------------------------------------------------------- in a segmenter


def test_segment_refines(segmenter, scene):
    labels = ["sky", "meadow", "road", "red box"]
    features = segmenter.encode_image(scene)
    plain = segmenter.segment(features, labels, background=["wall"], scores=True)
    maps = {}
    for method in METHODS:
        result = segmenter.segment(features, labels, background=["wall"], refine=method, scores=True)
        assert result.scores.shape == plain.scores.shape
        decided = result.segmentation != result.ignore_index
        assert (result.scores.argmax(0) == result.segmentation)[decided].all()
        assert (result.segmentation != plain.segmentation).any()
        maps[method] = segmenter.segment(scene, labels, background=["wall"], refine=method).segmentation
        np.testing.assert_array_equal(maps[method], result.segmentation)
    assert all((one != other).any() for one, other in itertools.combinations(maps.values(), 2))


def test_segment_says_what_is_wrong(segmenter, scene):
    with pytest.raises(InvalidArgumentError, match="'guided', 'crf', 'pamr'"):
        segmenter.segment(scene, ["sky", "road"], refine="sharp")
    features = replace(segmenter.encode_image(scene), image=None)
    with pytest.raises(InvalidArgumentError, match="image"):
        segmenter.segment(features, ["sky", "road"], refine="guided")


def test_the_shared_segment_passes_it_on(scene):
    labels = ["sky", "meadow"]
    refined = ovseg.segment(scene, labels, refine="crf")
    np.testing.assert_array_equal(refined.segmentation, ovseg.load("mini").segment(scene, labels, refine="crf").segmentation)


@pytest.fixture
def loaded(segmenter, monkeypatch):
    """Let the commands use the model that is loaded already."""
    monkeypatch.setattr("ovseg.segmenter.load", lambda *_, **__: segmenter)
    return segmenter


def test_segment_on_the_command_line(loaded, scene, tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "map.png"
    Image.fromarray(scene).save(photo)
    assert main(["segment", str(photo), "sky", "meadow", "red box", "--refine", "crf", "-o", str(out)]) == 0
    wanted = loaded.segment(scene, ["sky", "meadow", "red box"], refine="crf")
    np.testing.assert_array_equal(np.asarray(Image.open(out)), wanted.segmentation)
    with pytest.raises(SystemExit):
        main(["segment", str(photo), "sky", "--refine", "sharp"])
    assert "guided" in capsys.readouterr().err


def test_eval_on_the_command_line(loaded, scene, tmp_path, capsys):
    truth = np.zeros(scene.shape[:2], np.uint8)
    truth[50:] = 1
    truth[:4] = 255
    for folder, pixels in (("images", scene), ("labels", truth)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "one.png")
    (tmp_path / "labels.txt").write_text("sky\nmeadow\n")
    found = loaded.segment(scene, ["sky", "meadow"], refine="guided").segmentation
    rims = BoundaryIou(2, 0.03)
    rims.update(truth, found, ignore_index=255, undecided_index=255)
    report = tmp_path / "scores.json"
    assert main(["eval", str(tmp_path), "--refine", "guided", "--boundary", "0.03", "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    assert result["boundary_iou"] == pytest.approx(rims.mean)
    assert result["pixel_accuracy"] == pytest.approx(100 * (found == truth)[4:].mean())
    assert (result["settings"]["refine"], result["settings"]["boundary"]) == ("guided", 0.03)
    assert f"boundary IoU            {rims.mean:6.2f}" in capsys.readouterr().out
    assert main(["eval", str(tmp_path), "--boundary", "2"]) == 2
