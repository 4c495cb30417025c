"""Hints through `segment`, on the command line, and measured."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.data import astronaut

import ovseg
from ovseg.cli import main
from ovseg.errors import InvalidArgumentError, InvalidLabelsError
from ovseg.evaluation.datasets import Dataset
from ovseg.evaluation.hints import evaluate_hints, next_error
from ovseg.hints import Hints


@pytest.fixture(scope="module")
def seg():
    return ovseg.load("mini")


@pytest.fixture(scope="module")
def image():
    return astronaut()[::2, ::2]


LABELS = ["person", "flag", ("wall", "curtain")]


def test_a_click_is_heeded_and_the_rest_is_not_redone(seg, image):
    features = seg.encode_image(image)
    before = seg.segment(features, LABELS)
    y, x = 20, 20
    other = LABELS[1] if before.segmentation[y, x] != 1 else LABELS[0]
    result = seg.segment(features, LABELS, hints=Hints.clicks({other: (x, y)}), scores=True, confidence=True)
    assert result.mask(other)[y - 2 : y + 3, x - 2 : x + 3].all()
    assert result.scores.sum(0) == pytest.approx(1, abs=1e-3)
    assert np.array_equal(result.segmentation, seg.segment(image, LABELS, hints=Hints.clicks({other: (x, y)})).segmentation)
    assert result.entropy[y, x] == 0
    x, y = result.next_click(Hints.clicks({other: (x, y)}))
    assert 0 <= x < image.shape[1] and 0 <= y < image.shape[0]


def test_synonyms_and_background_words_can_be_pointed_at(seg, image):
    result = seg.segment(image, LABELS, background=["sky"], hints=Hints.clicks({"curtain": (30, 30), "sky": (200, 30)}))
    assert result.segmentation[30, 30] == 2 and result.segmentation[30, 200] == result.ignore_index


@pytest.mark.parametrize("refine", [None, "guided", "crf", "pamr"])
def test_painted_pixels_keep_their_label_whatever_comes_after(seg, image, refine):
    painted = np.random.default_rng(0).random(image.shape[:2]) < 0.02  # single pixels, which a refiner would smooth away
    painted &= seg.segment(image, LABELS).segmentation != 1
    result = seg.segment(image, LABELS, hints=Hints.scribbles({"flag": painted}), refine=refine, scores=True)
    assert (result.segmentation[painted] == 1).all()
    assert (result.scores[:, painted] == np.array([[0], [1], [0]])).all()


def test_tags_are_soft(seg, image):
    features = seg.encode_image(image)
    free = seg.segment(features, LABELS).coverage()
    tagged = seg.segment(features, LABELS, hints=Hints.tags(["person", "wall"])).coverage()
    assert tagged["flag"] <= free["flag"]
    pointed = seg.segment(features, LABELS, hints=Hints.tags("person") + Hints.clicks({"flag": (20, 20)}))
    assert pointed.mask("flag")[20, 20]


def test_no_hints_are_no_hints(seg, image):
    features = seg.encode_image(image)
    assert np.array_equal(seg.segment(features, LABELS, hints=Hints()).segmentation, seg.segment(features, LABELS).segmentation)


def test_hints_of_a_list(seg, image):
    a, b = seg.segment([image, image], LABELS, hints=[None, Hints.clicks({"flag": (5, 5)})])
    assert np.array_equal(a.segmentation, seg.segment(image, LABELS).segmentation) and b.mask("flag")[5, 5]
    with pytest.raises(InvalidArgumentError, match="list of 2 images"):
        seg.segment([image, image], LABELS, hints=Hints.clicks({"flag": (5, 5)}))
    with pytest.raises(InvalidArgumentError, match="Hints"):
        seg.segment(image, LABELS, hints={"flag": (5, 5)})
    with pytest.raises(InvalidLabelsError, match="'dog'"):
        seg.segment(image, LABELS, hints=Hints.clicks({"dog": (5, 5)}))


def test_command_line(image, tmp_path, capsys):
    Image.fromarray(image).save(tmp_path / "a.png")
    strokes = np.full(image.shape[:2], 255, np.uint8)
    strokes[5:15, 5:100] = 1
    Image.fromarray(strokes).save(tmp_path / "strokes.png")
    picture, out = str(tmp_path / "a.png"), tmp_path / "out.npz"
    assert main(["segment", picture, "person", "flag", "--hints", str(tmp_path / "strokes.png"), "-o", str(out)]) == 0
    assert (np.load(out)["segmentation"][5:15, 5:100] == 1).all()
    assert main(["segment", picture, picture, "person", "flag", "--hints", str(tmp_path / "strokes.png")]) == 2
    capsys.readouterr()


@pytest.mark.parametrize("seed", range(5))
def test_the_robot_clicks_into_the_largest_error(seed):
    chance = np.random.default_rng(seed)
    truth = ndimage.zoom(chance.integers(0, 3, (5, 6)), 8, order=0).astype(np.uint8)
    truth[:3] = 255
    predicted = ndimage.zoom(chance.integers(0, 3, (5, 6)), 8, order=0).astype(np.uint8)
    sizes, spots = [], []
    for label in range(3):
        regions, count = ndimage.label((truth == label) & (predicted != label))
        for i in range(1, count + 1):
            sizes.append((regions == i).sum())
            spots.append((label, regions == i))
    x, y, label = next_error(truth, predicted, 255)
    hit = [i for i, (kind, region) in enumerate(spots) if kind == label and region[y, x]]
    assert sizes[hit[0]] == max(sizes)
    depth = ndimage.distance_transform_cdt(np.pad(spots[hit[0]][1], 1), "chessboard")[1:-1, 1:-1]
    assert depth[y, x] >= 0.6 * depth.max()
    assert next_error(truth, truth, 255) is None


def test_measured_on_a_data_set(seg, image, tmp_path, capsys):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    truth = np.full(image.shape[:2], 255, np.uint8)
    truth[:, :60], truth[60:, 120:] = 0, 1
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    Image.fromarray(truth).save(tmp_path / "labels" / "a.png")
    (tmp_path / "labels.txt").write_text("flag\nperson\n")
    result = evaluate_hints(seg, Dataset.open(tmp_path), (0, 1, 2), progress=False)
    assert result.without_words[0] is None and result.mean_iou[2] >= result.mean_iou[0]
    assert result.mean_iou[0] == pytest.approx(
        np.mean([100 * i for i in _ious(truth, seg.segment(image, ["flag", "person"]).segmentation)]), abs=0.01
    )
    predicted = seg.segment(image, ["flag", "person"]).segmentation.copy()
    for found in result.whole_regions:
        assert found == pytest.approx(100 * np.mean(list(_ious(truth, predicted))), abs=0.01)
        wrong = [ndimage.label((truth == label) & (predicted != label)) for label in (0, 1)]
        regions = [labels == i for labels, count in wrong for i in range(1, count + 1)]
        if regions:
            largest = max(regions, key=np.count_nonzero)
            predicted[largest] = truth[largest]
    assert result.whole_regions[0] == pytest.approx(result.mean_iou[0])
    for clicker in ("next", "random"):
        other = evaluate_hints(seg, Dataset.open(tmp_path), (0, 1), clicker=clicker, words=False, progress=False)
        assert other.whole_regions == (None, None)
    with pytest.raises(InvalidArgumentError, match="increasing"):
        evaluate_hints(seg, Dataset.open(tmp_path), (3, 1))
    with pytest.raises(InvalidArgumentError, match="clicker"):
        evaluate_hints(seg, Dataset.open(tmp_path), clicker="me")
    assert main(["eval", str(tmp_path), "--hints", "0,1", "--json", str(tmp_path / "r.json")]) == 0
    assert "mIoU" in capsys.readouterr().out and (tmp_path / "r.json").exists()
    assert main(["eval", str(tmp_path), "--clicker", "next"]) == 2


def _ious(truth, predicted):
    known = truth != 255
    for label in (0, 1):
        a, b = (truth == label) & known, (predicted == label) & known
        yield (a & b).sum() / (a | b).sum()
