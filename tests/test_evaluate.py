from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ovseg
from ovseg.errors import DatasetError, InvalidArgumentError, InvalidLabelsError, OutputError
from ovseg.evaluation.calibrate import calibrate
from ovseg.evaluation.datasets import Dataset
from ovseg.evaluation.evaluate import EvaluationResult, evaluate
from ovseg.evaluation.hints import evaluate_hints
from ovseg.result import Segmentation
from ovseg.vocabulary import TEMPLATE_SETS, Label, Vocabulary

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


class ColourSegmenter:
    """Gives each pixel the label whose colour is nearest, and none to black."""

    name = "colours"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def segment(
        self,
        image: NDArray[np.uint8],
        labels: tuple[tuple[str, ...], ...],
        *,
        templates: Any = None,
        window: str | None = None,
        size: int | str | None = None,
    ) -> Segmentation:
        self.calls.append(
            {"labels": labels, "templates": templates, "window": window, "size": size}
        )
        words = [next(word for word in entry if word in COLOURS) for entry in labels]
        colours = np.array([COLOURS[word] for word in words])
        distances = np.abs(image[..., None, :].astype(int) - colours).sum(axis=-1)
        segmentation = distances.argmin(axis=-1).astype(np.uint8)
        segmentation[image.sum(axis=-1) == 0] = 255
        return Segmentation(segmentation, tuple(entry[0] for entry in labels), 255)


def make_dataset(folder: Path, pictures: list[tuple[list[Any], list[int]]]) -> Dataset:
    """Write images of one row, given by the colours and the true indices of their pixels."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i, (colours, truth) in enumerate(pictures):
        pixels = np.array([[COLOURS.get(colour, (0, 0, 0)) for colour in colours]], np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i:03}.png")
        Image.fromarray(np.array([truth], np.uint8)).save(folder / f"labels/{i:03}.png")
    (folder / "labels.txt").write_text("red\ngreen\nblue\ngrey\n")
    return Dataset.open(folder)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(
        tmp_path / "tiles",
        [
            # 4 red of which one looks green, one ignored
            (["red", "red", "red", "green", "green"], [0, 0, 0, 0, 255]),
            # 2 green, one black and so undecided; 1 blue
            (["green", None, "blue"], [1, 1, 2]),
        ],
    )


def run(dataset: Dataset, **options: Any) -> EvaluationResult:
    return evaluate(ColourSegmenter(), dataset, progress=False, **options)


def test_scores_counted_by_hand(dataset: Dataset) -> None:
    result = run(dataset)
    assert (result.model, result.dataset, result.images) == ("colours", "tiles", 2)
    assert result.folder == str(dataset.folder)
    assert result.labels == (("red",), ("green",), ("blue",), ("grey",))
    # red: 3 of 4 found; green: 1 hit, 1 undecided, 1 false; blue: right; grey: not there.
    nan = math.nan
    assert result.iou == pytest.approx(
        {"red": 75, "green": 100 / 3, "blue": 100, "grey": nan}, nan_ok=True
    )
    assert result.recall == pytest.approx(
        {"red": 75, "green": 50, "blue": 100, "grey": nan}, nan_ok=True
    )
    assert result.precision == pytest.approx(
        {"red": 100, "green": 50, "blue": 100, "grey": nan}, nan_ok=True
    )
    assert result.share == pytest.approx(
        {"red": 400 / 7, "green": 200 / 7, "blue": 100 / 7, "grey": 0}
    )
    assert result.mean_iou == pytest.approx((75 + 100 / 3 + 100) / 3)
    assert result.mean_accuracy == pytest.approx((75 + 50 + 100) / 3)
    assert result.pixel_accuracy == pytest.approx(500 / 7)
    assert result.frequency_weighted_iou == pytest.approx((4 * 75 + 2 * 100 / 3 + 100) / 7)


def test_time_is_that_of_the_segmenter(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 10.5, 100.0, 102.0])
    monkeypatch.setattr("ovseg.evaluation.evaluate.time.perf_counter", lambda: next(ticks))
    result = run(dataset)
    assert result.seconds == 2.5
    assert result.images_per_second == 0.8


def test_the_labels_and_options_reach_the_segmenter(dataset: Dataset) -> None:
    renamed = Dataset.open(
        dataset.folder, labels=[("crimson", "red"), "green", "blue", ("ash", "grey")]
    )
    segmenter = ColourSegmenter()
    result = evaluate(
        segmenter, renamed, templates="imagenet", window="sliding", size=256, progress=False
    )
    assert segmenter.calls == 2 * [
        {"labels": renamed.labels, "templates": "imagenet", "window": "sliding", "size": 256}
    ]
    assert list(result.iou) == ["crimson", "green", "blue", "ash"]
    assert result.iou["crimson"] == 75
    assert result.settings == {
        "templates": "imagenet",
        "window": "sliding",
        "size": 256,
        "limit": None,
    }


def test_templates_of_every_kind_are_described(dataset: Dataset) -> None:
    def shout(label: str) -> str:
        return label.upper()

    segmenter = ColourSegmenter()
    result = evaluate(segmenter, dataset, templates=(t for t in ("a {}", shout)), progress=False)
    assert [call["templates"] for call in segmenter.calls] == 2 * [("a {}", shout)]
    assert result.settings["templates"] == ["a {}", "shout"]
    assert "2 templates" in result.format_table()
    assert run(dataset, templates=shout).settings["templates"] == "shout"
    food = TEMPLATE_SETS["food"]
    assert run(dataset, templates=food).settings["templates"] == "food"
    with pytest.raises(InvalidLabelsError):
        run(dataset, templates=["no placeholder"])


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, range(10)),
        (10, range(10)),
        (99, range(10)),
        (1, [5]),
        (2, [2, 7]),
        (3, [1, 5, 8]),
        (5, [1, 3, 5, 7, 9]),
    ],
)
def test_limit_spreads_the_images_evenly(
    tmp_path: Path, limit: int | None, expected: list[int]
) -> None:
    # Image i has i + 1 pixels, so the number of pixels tells which images were taken.
    seen = []

    class Recorder(ColourSegmenter):
        def segment(self, image: NDArray[np.uint8], labels: Any, **options: Any) -> Segmentation:
            seen.append(image.shape[1] - 1)
            return super().segment(image, labels, **options)

    data = make_dataset(tmp_path, [((i + 1) * ["red"], (i + 1) * [0]) for i in range(10)])
    result = evaluate(Recorder(), data, limit=limit, progress=False)
    assert seen == list(expected)
    assert (result.images, result.settings["limit"]) == (len(expected), limit)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
def test_limit_is_checked(dataset: Dataset, limit: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="limit must be a positive integer or None"):
        run(dataset, limit=limit)


def test_a_faulty_label_file_is_found_before_anything_is_segmented(dataset: Dataset) -> None:
    Image.new("RGB", (3, 1)).save(dataset.samples[-1].labels_path)
    segmenter = ColourSegmenter()
    with pytest.raises(DatasetError, match="RGB"):
        evaluate(segmenter, dataset, progress=False)
    assert segmenter.calls == []


def test_as_dict_is_json_with_null_for_nan(dataset: Dataset) -> None:
    result = run(dataset, size=np.int64(64))
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert values == result.as_dict()
    assert values["iou"] == {
        "red": 75.0,
        "green": pytest.approx(100 / 3),
        "blue": 100.0,
        "grey": None,
    }
    assert values["labels"] == [["red"], ["green"], ["blue"], ["grey"]]
    assert values["images_per_second"] == result.images_per_second
    assert values["mean_iou"] == result.mean_iou
    assert set(values) == {
        *EvaluationResult.__dataclass_fields__,
        "images_per_second",
    }


def test_save(dataset: Dataset, tmp_path: Path) -> None:
    result = run(dataset)
    result.save(tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text("utf-8")
    assert json.loads(text) == result.as_dict()
    with pytest.raises(OutputError, match="does not exist"):
        result.save(tmp_path / "missing" / "result.json")


def test_format_table(dataset: Dataset) -> None:
    lines = run(dataset, window="whole", limit=2).format_table().splitlines()
    assert lines[0] == "colours on tiles, in percent, window whole, limit 2"
    table = [line.split() for line in lines[2:7]]
    assert table == [
        ["label", "IoU", "precision", "recall", "share", "of", "pixels"],
        ["red", "75.00", "100.00", "75.00", "57.14"],
        ["green", "33.33", "50.00", "50.00", "28.57"],
        ["blue", "100.00", "100.00", "100.00", "14.29"],
        ["grey", "-", "-", "-", "0.00"],
    ]
    assert len({len(line) for line in lines[2:7]}) == 1  # aligned
    assert lines[8].split(maxsplit=2) == [
        "mIoU",
        "69.44",
        "(over 3 of 4 labels, all 2 images together)",
    ]
    assert lines[12].startswith("2 images in ")


def test_a_dataset_of_ignored_pixels(tmp_path: Path) -> None:
    result = run(make_dataset(tmp_path, [(["red", "blue"], [255, 255])]))
    assert math.isnan(result.mean_iou)
    assert result.as_dict()["mean_iou"] is None
    assert "(over 0 of 4 labels" in result.format_table()


def test_the_progress_bar_goes_to_stderr(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(ColourSegmenter(), dataset)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "tiles: 100%" in captured.err and "2/2" in captured.err
    run(dataset)
    assert capsys.readouterr() == ("", "")


class TaggedSegmenter(ColourSegmenter):
    """Notes the tags, and says "grey" of what is not tagged."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[Any] = []

    def segment(self, image: NDArray[np.uint8], labels: tuple[tuple[str, ...], ...], *, tags: Any = None, **options: Any) -> Segmentation:
        self.tags.append(tags)
        return super().segment(image, labels, **options)


def test_rivals_are_always_wrong(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "tiles", [(["red", "blue", "blue", "green"], [0, 2, 2, 1])]).folder
    (folder / "labels.txt").write_text("red\ngreen\n")
    Image.fromarray(np.array([[0, 0, 1, 1]], np.uint8)).save(folder / "labels/000.png")
    dataset = Dataset.open(folder)
    plain, more = (run(dataset, rivals=rivals) for rivals in (None, ["blue", "grey", "RED"]))
    assert plain.recall["red"] == 100  # red is as near to blue as green is, and comes first
    assert more.recall == {"red": 50, "green": 50}
    assert more.precision == {"red": 100, "green": 100}  # a rival is a miss and nobody's false positive
    assert more.settings["rivals"] == 2 and "rivals" not in plain.settings
    assert more.labels == dataset.labels


def test_tags_of_the_truth(dataset: Dataset) -> None:
    segmenter = TaggedSegmenter()
    assert evaluate(segmenter, dataset, tags="truth", progress=False).settings["tags"] == "truth"
    assert evaluate(segmenter, dataset, tags="auto", progress=False).settings["tags"] == "auto"
    assert segmenter.tags == [["red"], ["green", "blue"], "auto", "auto"]
    with pytest.raises(InvalidArgumentError, match="tags must be"):
        evaluate(segmenter, dataset, tags="all", progress=False)


# ------------------------------------------------------------------------------------------------------ vocabularies with rules


@pytest.fixture
def photos(tmp_path: Path, scene: NDArray[np.uint8]) -> Path:
    """Two pictures whose true labels are bands, so that no answer is right everywhere."""
    truth = np.repeat(np.array([0, 0, 1, 2, 255], np.uint8), scene.shape[0] // 5 + 1)[: scene.shape[0], None].repeat(scene.shape[1], 1)
    for part in ("images", "labels"):
        (tmp_path / "photos" / part).mkdir(parents=True)
    for number, picture in enumerate((scene, scene[:, ::-1])):
        Image.fromarray(picture).save(tmp_path / f"photos/images/{number}.png")
        Image.fromarray(truth).save(tmp_path / f"photos/labels/{number}.png")
    (tmp_path / "photos/labels.txt").write_text("sky\ngrass\nroad\n")
    return tmp_path / "photos"


LEVELS = [Label("sky"), Label("meadow", parent="grass"), Label("heath", parent="grass"), Label("street", parent="road")]


@pytest.mark.parametrize(
    ("vocabulary", "others"),
    [
        (Vocabulary(["sky", "grass", "road"], background=["water", "auto"]), ["sea", "Heath"]),
        (
            Vocabulary(["sky", Label("grass", threshold=0.7), "road"], priorities=[("road", "grass", 0.1)], exclusive=[("sky", "road")]),
            ["sea", "Heath", "water"],
        ),
        (Vocabulary(["heaven", ("meadow", "heath"), "street"], combine="max", background="person"), ["sea", "water", "grass"]),
        (Vocabulary(LEVELS, level=0), ["sea", "water"]),
    ],
    ids=["background", "rules", "synonyms", "level"],
)
@pytest.mark.parametrize("rivals", [None, ["sea", "Heath", "water", "grass"]], ids=["plain", "rivals"])
def test_the_rules_of_a_vocabulary_decide(
    photos: Path, segmenter: ovseg.Segmenter, vocabulary: Vocabulary, others: list[str], rivals: list[str] | None, tmp_path: Path
) -> None:
    vocabulary.save(tmp_path / "words.json")
    dataset = Dataset.open(photos, labels=tmp_path / "words.json")
    assert len(dataset.labels) == 3
    result = evaluate(segmenter, dataset, size=64, rivals=rivals, progress=False)
    assert result.settings["vocabulary with"] == ", ".join(vocabulary.rules)
    truths, answers = [], []
    if rivals is not None:
        vocabulary = Vocabulary(
            [*vocabulary.labels, *others], background=vocabulary.background, combine=vocabulary.combine, priorities=vocabulary.priorities,
            exclusive=vocabulary.exclusive, level=vocabulary.level,
        )  # fmt: skip
        assert result.settings["rivals"] == len(others)
    for number in range(2):
        truths.append(np.asarray(Image.open(photos / f"labels/{number}.png")).ravel())
        answers.append(segmenter.segment(photos / f"images/{number}.png", vocabulary, size=64).segmentation.ravel())
    truth, answer = np.concatenate(truths), np.concatenate(answers)
    truth, answer = truth[truth != 255], answer[truth != 255]
    assert result.pixel_accuracy == pytest.approx(100 * (truth == answer).mean())  # undecided pixels are wrong
    for index, value in enumerate(result.iou.values()):
        both, either = ((truth == index) & (answer == index)).sum(), ((truth == index) | (answer == index)).sum()
        assert value == pytest.approx(100 * both / either)


def test_a_vocabulary_beside_the_images(photos: Path, segmenter: ovseg.Segmenter) -> None:
    pytest.importorskip("yaml")
    plain = evaluate(segmenter, Dataset.open(photos), size=64, progress=False)
    vocabulary = Vocabulary(["sky", "grass", "road"], background=["wall"], priorities=["road > sky"])
    vocabulary.save(photos / "labels.yaml")
    dataset = Dataset.open(photos)
    assert (dataset.vocabulary, dataset.labels) == (vocabulary, (("sky",), ("grass",), ("road",)))
    ruled = evaluate(segmenter, dataset, size=64, progress=False)
    assert ruled.iou != plain.iou
    assert "vocabulary with background, priorities" in ruled.format_table()
    assert Dataset.open(photos, labels=["sky", "grass", "road"]).vocabulary is None  # what is given takes its place
    Vocabulary(["sky", Label("grass", color="#00ff00"), "road"]).save(photos / "labels.yaml")
    assert Dataset.open(photos).vocabulary is None  # nothing that has a say in the answers
    (photos / "labels.yaml").write_text("labels: [sky, sky]")
    with pytest.raises(DatasetError, match="same word"):
        Dataset.open(photos)


def test_answers_that_are_not_the_classes(photos: Path) -> None:
    with pytest.raises(InvalidLabelsError, match="each of the 3 classes"):
        Dataset.open(photos, labels=Vocabulary(LEVELS))
    with pytest.raises(InvalidLabelsError, match="index 0 is 'sky' there; got 'Grass'"):
        Dataset.open(photos, labels=["Grass", "sky", "road"])
    assert Dataset.open(photos, labels=Vocabulary(LEVELS).at(0)).labels == (("sky",), ("grass",), ("road",))


def test_what_measures_words_alone_refuses_rules(photos: Path, segmenter: ovseg.Segmenter) -> None:
    dataset = Dataset.open(photos, labels=Vocabulary(["sky", "grass", "road"], background="auto"))
    with pytest.raises(InvalidLabelsError, match="Calibration measures .*background"):
        calibrate(segmenter, [dataset], progress=False)
    with pytest.raises(InvalidLabelsError, match="clicks measures .*background"):
        evaluate_hints(segmenter, dataset, progress=False)
