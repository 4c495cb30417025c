"""Corrections: the solve against independent computations, and what it must and must not change."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy
from skimage.color import rgb2lab
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge

from ovseg import alike, correct
from ovseg.alike import KERNEL, Cells, Kernel, View, lab
from ovseg.correct import TRUST_HINTS, Words, absence, solve
from ovseg.hints import Hints
from ovseg.similarity import Grid

LABELS = ["a", "b", "c"]


def scene(height=18, width=24, cells=(18, 24), seed=0, dims=6):
    """An image with features on a grid, and scores of three labels."""
    chance = np.random.default_rng(seed)
    image = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
    features = chance.normal(size=(dims, *cells)).astype(np.float32)
    features /= np.linalg.norm(features, axis=0)
    scores = chance.dirichlet(np.ones(3), (height, width)).astype(np.float32).transpose(2, 0, 1).copy()
    return image, Grid(features, (height, width), (float(cells[0]), float(cells[1]))), scores


def fixed(scores, seeds, image, grid, cells=None):
    """Corrected scores of all pixels, from scores that lie on the pixels."""
    view = View.make(seeds.image_size, image, grid)
    result = correct.corrected(scores.copy(), cells or Cells(seeds.image_size, 1), seeds, view)
    dense = np.concatenate([part for _, part in result.strips()], axis=1)
    assert (dense.argmax(0) == result.label_map()).mean() > 0.999  # the fast way says the same
    return dense


def brute(image, features, scores, seeds, kernel=KERNEL, gram=False):
    """Pixel by pixel with features at pixels: the definition, in float64. Gives the rise (L, H * W), or K between all pixels and seeds."""
    height, width = image.shape[:2]
    y, x = np.divmod(np.arange(height * width), width)
    place = np.stack([y, x], 1) / (max(height, width) * kernel.position)
    colour = rgb2lab(image).reshape(-1, 3) / (100, 128, 128) / kernel.colour
    f = features.reshape(len(features), -1).astype(np.float64)

    def k(p, q):
        apart = 1 - f[:, p] @ f[:, q]
        near = np.exp(-((place[p] - place[q]) ** 2).sum() / 2 - ((colour[p] - colour[q]) ** 2).sum() / 2 - apart / kernel.feature**2)
        return (1 - kernel.anywhere) * near + kernel.anywhere * np.exp(-apart / kernel.anywhere_feature**2) + kernel.everywhere

    all_k = np.array([[k(p, q) for q in seeds.pixels] for p in range(height * width)])
    if gram:
        return all_k
    logs = np.log(np.maximum(scores.reshape(len(scores), -1), 1e-4))
    need = np.zeros((len(seeds.pixels), len(scores)))
    for i, (q, label) in enumerate(zip(seeds.pixels, seeds.labels, strict=True)):
        best_other = max(logs[j, q] for j in range(len(scores)) if j != label)
        p = scores.reshape(len(scores), -1)[:, q].astype(float)
        need[i, label] = max(0, best_other - logs[label, q] + kernel.lead + kernel.doubt * entropy(p))
    noise = np.diag(kernel.noise / seeds.weights)
    return (all_k @ np.linalg.inv(all_k[seeds.pixels] + noise) @ need).T


HINTS = Hints.clicks({"a": (3, 4), "b": (15, 10)}, radius=1) + Hints.boxes({"c": (18, 2, 23, 8)})


def test_the_solve_is_its_formula():
    image, grid, scores = scene()
    seeds = HINTS.seeds((18, 24), LABELS)
    result = solve(View.make((18, 24), image, grid), Cells((18, 24), 1), seeds, np.log(scores))
    expected = brute(image, grid.embedding, scores, seeds)
    assert result.labels.tolist() == [0, 1, 2]
    assert result.rise.reshape(3, -1) == pytest.approx(expected, abs=2e-3)


def test_scores_are_multiplied_and_keep_their_sum():
    image, grid, scores = scene()
    seeds = HINTS.seeds((18, 24), LABELS)
    words = scores.reshape(3, -1)
    wrong = seeds.marks * (words[:, seeds.pixels].argmax(0) != seeds.labels).mean()
    assert wrong > 1
    doubted = 1 - words.max(0).mean()
    words = words ** (1 / (1 + (wrong * doubted / (1 - doubted) / TRUST_HINTS) ** 2))
    expected = words * np.exp(brute(image, grid.embedding, words.reshape(scores.shape), seeds))  # all labels are pointed at
    expected /= expected.sum(0)
    painted = seeds.weights == 1
    expected[:, seeds.pixels[painted]] = 0
    expected[seeds.labels[painted], seeds.pixels[painted]] = 1
    result = fixed(scores, seeds, image, grid).reshape(3, -1)
    assert result == pytest.approx(expected, abs=2e-3)
    assert result.sum(0) == pytest.approx(1, abs=1e-5)


def test_the_solve_is_sklearns():
    """Kernel ridge regression on the residual, and the mean of a Gaussian process, which is the same."""
    image, grid, scores = scene(seed=3)
    seeds = Hints.clicks({"a": (3, 4), "b": (15, 10)}, radius=1).seeds((18, 24), LABELS)
    own_kernel = Kernel(anywhere=0.0, everywhere=0.0, feature=1e6, doubt=0.0)  # position and colour alone: an ordinary Gaussian kernel
    result = solve(View.make((18, 24), image, grid), Cells((18, 24), 1), seeds, np.log(scores), own_kernel)
    y, x = np.divmod(np.arange(18 * 24), 24)
    place = np.concatenate(
        [np.stack([y, x], 1) / (24 * own_kernel.position), rgb2lab(image).reshape(-1, 3) / (100, 128, 128) / own_kernel.colour], 1
    )
    logs = np.log(np.maximum(scores.reshape(3, -1)[:, seeds.pixels], 1e-4))
    for label in (0, 1):
        others = np.delete(logs, label, axis=0).max(0)
        need = np.where(seeds.labels == label, np.maximum(others - logs[label] + own_kernel.lead, 0), 0)
        rise = result.rise[label].ravel()
        ridge = KernelRidge(alpha=own_kernel.noise, kernel="rbf", gamma=0.5).fit(place[seeds.pixels], need)
        assert rise == pytest.approx(ridge.predict(place), abs=2e-3)
        process = GaussianProcessRegressor(alpha=own_kernel.noise, optimizer=None).fit(place[seeds.pixels], need)
        assert rise == pytest.approx(process.predict(place), abs=2e-3)


def test_features_on_a_coarser_grid_are_interpolated():
    image, grid, scores = scene(cells=(6, 8), seed=1)
    seeds = Hints.clicks({"a": (3, 4)}, radius=0.5).seeds((18, 24), LABELS)
    result = solve(View.make((18, 24), image, grid), Cells((18, 24), 1), seeds, np.log(scores))
    assert result.rise.shape == (1, 18, 24)
    alone = Kernel(anywhere=0.0, everywhere=0.0)
    near = alike.Alike(View.make((18, 24), None, grid), seeds.pixels, alone).to_seeds_times(np.ones((1, 1), np.float32))[0]
    # at the centre of a cell of the features the kernel is exact
    y, x = 3 * 4 + 1, 3 * 6 + 1
    seed = alike._features_at(grid, *(type(a)(a.low[i : i + 1], a.high[i : i + 1], a.weight[i : i + 1])
                                        for a, i in zip(grid.axes, (4, 3), strict=True)))[:, 0]  # fmt: skip
    seed /= np.linalg.norm(seed)
    apart = 1 - grid.embedding[:, 4, 6] @ seed
    expected = np.exp(-((y - 4) ** 2 + (x - 3) ** 2) / (2 * (24 * alone.position) ** 2) - apart / alone.feature**2)
    assert near[y, x] == pytest.approx(expected, rel=1e-3)


def test_lab_is_skimages():
    colours = np.random.default_rng(0).integers(0, 256, (1000, 1, 3)).astype(np.float32)
    assert lab(colours) == pytest.approx(rgb2lab(colours / 255), abs=0.15)


def test_cells_average_the_image():
    image = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    means = alike._means(image, 3)
    assert means.shape == (3, 4, 3)
    assert means[1, 2] == pytest.approx(image[3:6, 6:9].mean((0, 1)), abs=1e-3)
    assert means[2, 3] == pytest.approx(image[6:, 9:].mean((0, 1)), abs=1e-3)


def test_large_images_are_solved_on_few_cells():
    view = View.make((2000, 3001), np.zeros((2000, 3001, 3), np.uint8), None)
    assert np.prod(view.cells.size) <= alike.MAX_CELLS
    cells = view.cells.of(np.array([0, 2000 * 3001 - 1]))
    assert cells.tolist() == [0, np.prod(view.cells.size) - 1]


def test_a_hint_that_agrees_changes_nothing_else():
    image, grid, scores = scene()
    scores[:] = np.array([0.98, 0.01, 0.01], np.float32)[:, None, None]
    seeds = Hints.clicks({"a": (5, 5)}).seeds((18, 24), LABELS)
    result = fixed(scores, seeds, image, grid)
    rest = np.ones(18 * 24, bool)
    rest[seeds.pixels] = False
    assert result.reshape(3, -1)[:, rest] == pytest.approx(scores.reshape(3, -1)[:, rest], abs=1e-6)


def test_what_was_painted_stays_painted():
    image, grid, scores = scene()
    scores[:] = np.array([1, 0, 0], np.float32)[:, None, None]
    mask = np.zeros((18, 24), bool)
    mask[2:9, 3:20] = np.random.default_rng(0).random((7, 17)) < 0.5
    seeds = (Hints.scribbles({"b": mask}) + Hints.clicks({"c": (20, 15)})).seeds((18, 24), LABELS)
    result = fixed(scores, seeds, image, grid).argmax(0).ravel()
    assert np.array_equal(result[seeds.pixels], seeds.labels)


def test_alike_regions_follow_and_others_do_not():
    """Two halves of different colour and features: a click moves its own half only."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:] = (200, 180, 20)
    features = np.zeros((2, 15, 20), np.float32)
    features[0, :, :10], features[1, :, 10:] = 1, 1
    scores = np.full((2, 60, 80), 0.5, np.float32)
    scores[0] = 0.7
    scores[1] = 0.3
    seeds = Hints.clicks({"b": (10, 30)}).seeds((60, 80), ["a", "b"])
    result = fixed(scores, seeds, image, Grid(features, (60, 80), (15.0, 20.0))).argmax(0)
    assert (result[:, :36] == 1).mean() > 0.95 and (result[:, 44:] == 0).all()


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("with_grid", [True, False])
def test_without_colour_or_features(with_image, with_grid):
    image, grid, scores = scene()
    seeds = HINTS.seeds((18, 24), LABELS)
    result = fixed(scores, seeds, image if with_image else None, grid if with_grid else None)
    assert np.isfinite(result).all() and (result >= 0).all() and (result <= 1 + 1e-6).all()


def test_scores_that_do_not_sum_to_one_keep_their_sum():
    image, grid, scores = scene()
    scores *= np.random.default_rng(1).random((1, 18, 24)).astype(np.float32)
    seeds = HINTS.seeds((18, 24), LABELS)
    result = fixed(scores, seeds, image, grid).reshape(3, -1)
    rest = np.ones(18 * 24, bool)
    rest[seeds.pixels[seeds.weights == 1]] = False
    assert result.sum(0)[rest] == pytest.approx(scores.reshape(3, -1).sum(0)[rest], rel=1e-4)


def test_long_strokes_are_thinned_over_their_length():
    image, grid, scores = scene(120, 160, (30, 40))
    mask = np.zeros((120, 160), bool)
    mask[50:70, 5:155] = True
    seeds = (Hints.scribbles({"b": mask}) + Hints.clicks({"a": (20, 20)})).seeds((120, 160), LABELS)
    view = View.make((120, 160), image, grid)
    cells, labels, _ = correct._by_cell(view, seeds, 3)
    chosen = correct._spread(view, cells, labels)
    assert len(cells) > correct.MAX_SEEDS >= len(chosen)
    assert (labels[chosen] == 0).sum() == (labels == 0).sum()  # the click keeps all its seeds
    x = cells[chosen][labels[chosen] == 1] % view.cells.size[1]
    assert x.min() < 15 and x.max() > 145 and np.diff(np.sort(x)).max() < 16


def test_one_label_alone():
    image, grid, _ = scene()
    scores = np.ones((1, 18, 24), np.float32)
    seeds = Hints.clicks({"a": (5, 5)}).seeds((18, 24), ["a"])
    assert (fixed(scores, seeds, image, grid) == 1).all()


def test_what_nobody_points_at_and_holds_little_is_less_likely():
    share = np.array([0.6, 0.3, 0.06, 0.04, 0.0], np.float32)
    marks = Hints.clicks({"b": (3, 3)}) + Hints.clicks({"b": (8, 8)})
    words = ["a", "b", "c", "d", "e"]
    two = absence(share, marks.seeds((9, 9), words), Words(4, 0.25))
    much = correct.ABSENT * 2 / (2 + correct.ABSENT_HINTS)
    assert two == pytest.approx(much * np.array([0, 0, np.log(0.1), np.log(1 / 15), np.log(1e-4)]))
    tagged = absence(share, (marks + Hints.tags("d")).seeds((9, 9), words), Words(2, 1))
    assert tagged[3] == 0 and tagged[2] == two[2]
    more = absence(share, (marks + Hints.clicks({"a": (1, 8)})).seeds((9, 9), words), Words(3, 1))
    assert more[2] < two[2] and more[0] == 0
    assert not absence(share, marks.seeds((9, 9), words), Words(0, 1)).any()


def test_words_are_trusted_less_where_they_doubt_and_hints_contradict():
    chance = np.random.default_rng(0)
    scores = chance.dirichlet(np.ones(4), (5, 6)).transpose(2, 0, 1).astype(np.float32)
    part = np.mean([scores[:, y, x].max() for y in range(5) for x in range(6)])
    for total in (1.0, 0.4):  # scores need not sum to 1
        words = Words.judge(scores * np.float32(total), np.full((5, 6), total, np.float32), 3)
        assert words.odds == pytest.approx((1 - part) / part, rel=1e-4) and words.wrong == 3
    assert Words(0, 5).trust == Words(5, 0).trust == 1
    assert Words(TRUST_HINTS, 1).trust == Words(1, TRUST_HINTS).trust == 0.5
    trust = [Words(n, 0.7).trust for n in range(12)]
    assert all(a > b for a, b in zip(trust, trust[1:], strict=False))
    one = np.ones((1, 2, 2), np.float32)
    assert Words.judge(one, one[0], 3).odds == 0
    assert np.isfinite(Words.judge(0 * one, 0 * one[0], 3).odds)


def test_words_that_know_nothing_give_way_to_hints(monkeypatch):
    """Random scores of many labels, and hints that contradict them: in the end the answer is that of hints alone."""
    image, grid, _ = scene(36, 48, (18, 24))
    chance = np.random.default_rng(1)
    words = [f"w{i}" for i in range(30)]
    scores = chance.dirichlet(np.ones(30), (36, 48)).astype(np.float32).transpose(2, 0, 1)
    points = [(6, 6), (24, 6), (40, 6), (6, 30), (24, 30), (40, 30), (15, 18), (33, 18)]
    seeds = Hints.clicks({word: point for word, point in zip(words, points, strict=False)}).seeds((36, 48), words)
    alone = fixed(np.full_like(scores, 1 / 30), seeds, image, grid).argmax(0)
    assert (fixed(scores, seeds, image, grid).argmax(0) == alone).mean() > 0.9
    monkeypatch.setattr(correct, "TRUST_HINTS", 1e9)
    assert (fixed(scores, seeds, image, grid).argmax(0) == alone).mean() < 0.5



def test_coarse_cells_say_about_the_same():
    """An image of several pixels a cell, and scores that lie finer than the cells of the solve."""
    image, grid, _ = scene(90, 120, (15, 20))
    y, x = np.mgrid[:90, :120].astype(np.float32)
    scores = np.stack([0.6 - x / 400, 0.2 + x / 400, np.full_like(x, 0.2)])
    seeds = HINTS.seeds((90, 120), LABELS)
    exact = fixed(scores, seeds, image, grid)
    middle = scores[:, 1::3, 1::3]
    assert np.abs(fixed(middle, seeds, image, grid, Cells((90, 120), 3)) - exact).mean() < 0.01
