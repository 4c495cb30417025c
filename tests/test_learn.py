"""What training rests on: clicks, crops whose labels stay in place, TensorFlow's padding, the losses."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ovseg.learn import concepts  # noqa: E402
from ovseg.learn.clicks import UNLABELLED, read_clicks  # noqa: E402
from ovseg.learn.mini import LOGIT_SCALE, Losses, Words  # noqa: E402
from ovseg.learn.mini_data import LABEL_STRIDE, Item, Layer, crop_item  # noqa: E402
from ovseg.learn.teachers import _pad_same  # noqa: E402


def test_shipped_clicks_can_be_read_and_lie_in_their_grids() -> None:
    entries = list(read_clicks())
    assert len(entries) > 1000
    for entry in entries:
        rows, columns = entry.grid
        assert all(row < rows and column < columns and word < len(entry.words) for word, row, column, _ in entry.cells)


def test_clicks_are_drawn_where_they_say(tmp_path: Path) -> None:
    file = tmp_path / "clicks.txt"
    file.write_text("photos/a 4x2 | *dog: A1-B1; grass: D2~; sky: C1; water: C1\n")
    (entry,) = read_clicks(file)
    assert (entry.image, entry.grid, entry.words, entry.main) == ("photos/a", (2, 4), ("dog", "grass", "sky", "water"), 0)
    labels = entry.label_map(200, 400)
    assert (labels[10:90, 10:90] == 0).all() and (labels[10:90, 110:190] == 0).all()
    assert labels[150, 350] == 1 and labels[110, 310] == UNLABELLED  # a half cell speaks in its middle only
    assert (labels[:, 200:300] == UNLABELLED).all()  # two words for one cell: none
    file.write_text("photos/a 4x2 | dog: A1-\n")
    with pytest.raises(ValueError, match="A1-"):
        list(read_clicks(file))


@pytest.mark.parametrize("seed", range(6))
def test_labels_stay_on_their_pixels_in_a_crop(seed: int) -> None:
    labels = np.zeros((120, 160), np.uint8)
    labels[:60, 80:] = 1
    labels[60:, :80] = 2
    image = np.zeros((120, 160, 3), np.uint8)
    image[labels == 1] = 90
    image[labels == 2] = 240
    item = Item(Path("x"), image, [Layer(labels, (("a",), ("b",), ("c",)), True)])
    crop = crop_item(item, 96, random.Random(seed), (0.8, 1.5))
    drawn, _ = crop.layers[0]
    grey = crop.pixels.mean(0).unfold(0, LABEL_STRIDE, LABEL_STRIDE).unfold(1, LABEL_STRIDE, LABEL_STRIDE).mean((-2, -1))
    means = [grey[drawn == index].median() for index in range(3) if (drawn == index).sum() > 30]
    assert len(means) > 1
    assert all(a < b for a, b in zip(means, means[1:], strict=False))
    known = drawn != UNLABELLED
    nearest = torch.stack([(grey - m).abs() for m in means]).argmin(0)
    indices = [index for index in range(3) if (drawn == index).sum() > 30]
    agree = torch.tensor(indices)[nearest][known] == drawn[known]
    assert agree.float().mean() > 0.9


@pytest.mark.parametrize(("size", "kernel", "stride", "dilation"), [(8, 3, 2, 1), (9, 3, 2, 1), (10, 5, 1, 1), (33, 3, 1, 2)])
def test_same_padding_gives_the_size_of_tensorflow(size: int, kernel: int, stride: int, dilation: int) -> None:
    padded = _pad_same(torch.zeros(1, 1, size, size), (kernel, kernel), stride, dilation)
    out = (padded.shape[-1] - dilation * (kernel - 1) - 1) // stride + 1
    assert out == -(-size // stride)
    before = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0) // 2
    marked = _pad_same(torch.ones(1, 1, size, size), (kernel, kernel), stride, dilation)
    assert int(marked[0, 0, padded.shape[-1] // 2].argmax()) == before


def _words() -> Words:
    def encode(texts: list[str]) -> np.ndarray:
        vectors = [np.random.default_rng(sum(map(ord, text))).standard_normal(384) for text in texts]
        return np.stack([v / np.linalg.norm(v) for v in vectors]).astype(np.float32)

    return Words(encode)


def test_partial_cross_entropy_sees_labelled_pixels_only_and_prefers_the_right_word() -> None:
    words = _words()
    pool = [f"word {i}" for i in range(60)]
    losses = Losses(words, pool, words(pool), pool, random.Random(0))
    layer = Layer(np.zeros((1, 1), np.uint8), (("sky",), ("grass",)), True)
    labels = torch.full((16, 16), UNLABELLED)
    mean = torch.zeros(384)
    empty = losses.layer(torch.randn(8, 8, 384), torch.ones(8, 8), mean, labels, layer, [])
    assert empty is None
    labels[:8] = 0
    right, wrong = (words([name]).expand(64, 384).reshape(8, 8, 384) for name in ("sky", "grass"))
    values = [losses.layer(f, torch.ones(8, 8), mean, labels, layer, []) for f in (right, wrong)]
    assert values[0] < values[1] - LOGIT_SCALE / 4
    features = right.clone().requires_grad_()
    losses.layer(features, torch.ones(8, 8), mean, labels, layer, []).backward()
    assert features.grad[:3].abs().sum() > 0
    assert features.grad[6:].abs().sum() == 0  # beyond the labelled half, interpolation included


def test_names_that_test_renaming_are_not_taught() -> None:
    tables = (concepts.CAMVID, concepts.CITYSCAPES, concepts.VOC, concepts.AERIAL, concepts.SYNONYMS.values())
    taught = {name for table in tables for names in table for name in names}
    taught |= {name for _, _, name in concepts._EVERYDAY} | set(concepts._RENAMED.values())
    taught |= {word for entry in read_clicks() for word in entry.words}
    assert not taught & set(concepts.RENAMED_CAMVID)
