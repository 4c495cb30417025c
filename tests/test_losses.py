"""Losses of weak supervision against brute force, against each other's identities, and against numerical gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor  # noqa: E402
from torch.autograd import gradcheck  # noqa: E402

from ovseg.errors import InvalidArgumentError  # noqa: E402
from ovseg.learn import losses  # noqa: E402
from ovseg.learn.losses import ExactAffinity, FeatureAffinity, LatticeAffinity  # noqa: E402

B, K, H, W = 2, 3, 5, 6


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def probabilities() -> Tensor:
    return _random(B, K, H, W).softmax(1)


@pytest.fixture
def one_hot() -> Tensor:
    index = torch.randint(K, (B, H, W), generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.one_hot(index, K).permute(0, 3, 1, 2).double()


@pytest.fixture
def image() -> Tensor:
    return (_random(B, 3, H, W, seed=1) * 20 + 128).clamp(0, 255)


@pytest.fixture
def mask() -> Tensor:
    return torch.rand((B, H, W), generator=torch.Generator().manual_seed(4)) > 0.3


# ---------------------------------------------------------------------------------------------------- one pixel at a time


def test_partial_cross_entropy_is_the_mean_of_minus_log_at_the_seeds() -> None:
    logits = _random(B, K, H, W)
    labels = torch.full((B, H, W), 255)
    seeds = [(0, 0, 0, 2), (0, 4, 5, 0), (1, 2, 3, 1)]
    for b, y, x, label in seeds:
        labels[b, y, x] = label
    expected = 0.0
    for b, y, x, label in seeds:
        column = logits[b, :, y, x].numpy()
        expected -= math.log(math.exp(column[label]) / sum(math.exp(v) for v in column))
    assert float(losses.partial_cross_entropy(logits, labels)) == pytest.approx(expected / len(seeds), rel=1e-12)


def test_one_hot_predictions_make_seeds_a_hard_constraint(one_hot: Tensor) -> None:
    truth = one_hot.argmax(1)
    labels = torch.full((B, H, W), 255)
    labels[:, 1:3, 2] = truth[:, 1:3, 2]
    assert float(losses.partial_cross_entropy(one_hot.log(), labels)) == 0
    labels[1, 2, 2] = (truth[1, 2, 2] + 1) % K
    assert float(losses.partial_cross_entropy(one_hot.log(), labels)) == math.inf


def test_without_seeds_nothing_is_asked_for() -> None:
    logits = _random(B, K, H, W).requires_grad_()
    loss = losses.partial_cross_entropy(logits, torch.full((B, H, W), 255))
    loss.backward()
    assert float(loss.detach()) == 0 and not logits.grad.any()


@pytest.mark.parametrize("wrong", [K, -1])
def test_labels_that_do_not_exist_are_named(wrong: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"got {min(wrong, 0)} to {max(wrong, 0)}"):
        labels = torch.zeros((B, H, W), dtype=torch.long)
        labels[0, 0, 0] = wrong
        losses.partial_cross_entropy(_random(B, K, H, W), labels)


def test_entropy_is_shannons(probabilities: Tensor, one_hot: Tensor, mask: Tensor) -> None:
    from scipy.stats import entropy

    each = entropy(probabilities.numpy(), axis=1)
    assert float(losses.entropy(probabilities)) == pytest.approx(each.mean(), rel=1e-12)
    assert float(losses.entropy(probabilities, mask)) == pytest.approx(each[mask.numpy()].mean(), rel=1e-12)
    assert float(losses.entropy(one_hot)) == 0
    assert float(losses.entropy(torch.full((1, 4, 2, 2), 0.25))) == pytest.approx(math.log(4))
    leaf = one_hot.clone().requires_grad_()
    losses.entropy(leaf).backward()
    assert torch.isfinite(leaf.grad).all()


# ---------------------------------------------------------------------------------------------------------- pairs of pixels


def _steps(neighbourhood: int) -> set[tuple[int, int]]:
    """All steps to neighbours, both ways, from their distances."""
    squares = {4: {1}, 8: {1, 2}, 16: {1, 2, 5}}[neighbourhood]
    return {(y, x) for y in range(-2, 3) for x in range(-2, 3) if y * y + x * x in squares}


def _brute_pairwise(s: Tensor, image: Tensor, neighbourhood: int, sigma: float, mask: Tensor, relaxation: str) -> float:
    total = 0.0
    for b, y, x in itertools.product(range(B), range(H), range(W)):
        for down, right in _steps(neighbourhood):
            u, v = y + down, x + right
            if not (0 <= u < H and 0 <= v < W and mask[b, y, x] and mask[b, u, v]):
                continue
            weight = math.exp(-float(((image[b, :, y, x] - image[b, :, u, v]) ** 2).sum()) / (2 * sigma**2))
            p, q = s[b, :, y, x], s[b, :, u, v]
            # over both directions: S'W(1 - S); or half of the squared differences, each pair being met twice
            total += weight * float((p * (1 - q)).sum() if relaxation == "bilinear" else ((p - q) ** 2).sum() / 2)
    return total


@pytest.mark.parametrize("relaxation", losses.RELAXATIONS)
@pytest.mark.parametrize("neighbourhood", [4, 8, 16])
def test_the_grid_term_is_the_sum_over_neighbours(
    probabilities: Tensor, image: Tensor, mask: Tensor, neighbourhood: int, relaxation: str
) -> None:
    options = {"relaxation": relaxation, "neighbourhood": neighbourhood, "sigma": 25.0}
    expected = _brute_pairwise(probabilities, image, neighbourhood, 25.0, mask, relaxation)
    assert float(losses.pairwise(probabilities, image, mask=mask, reduction="sum", **options)) == pytest.approx(expected, rel=1e-10)
    assert float(losses.pairwise(probabilities, image, mask=mask, **options)) == pytest.approx(expected / int(mask.sum()), rel=1e-10)
    everywhere = torch.ones_like(mask)
    expected = _brute_pairwise(probabilities, image, neighbourhood, 25.0, everywhere, relaxation)
    assert float(losses.pairwise(probabilities, image, **options)) == pytest.approx(expected / (B * H * W), rel=1e-10)


@pytest.mark.parametrize("neighbourhood", [4, 8, 16])
def test_relaxations_of_the_grid_term_agree_on_one_hot_maps(one_hot: Tensor, image: Tensor, neighbourhood: int) -> None:
    both = [losses.pairwise(one_hot, image, neighbourhood=neighbourhood, relaxation=r, reduction="sum") for r in losses.RELAXATIONS]
    assert float(both[0]) == pytest.approx(float(both[1]), rel=1e-12) and float(both[0]) > 0


def test_a_pixel_alone_has_no_neighbours() -> None:
    assert float(losses.pairwise(torch.ones(1, 2, 1, 1), torch.zeros(1, 3, 1, 1), neighbourhood=16)) == 0


def _gaussian(image: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """The N x N matrix of exp(-|place|^2 / 2 sigma_xy^2 - |colour|^2 / 2 sigma_rgb^2), entry by entry."""
    matrix = torch.empty((H * W, H * W), dtype=torch.float64)
    for p, q in itertools.product(range(H * W), repeat=2):
        (y, x), (v, u) = divmod(p, W), divmod(q, W)
        colour = float(((image[:, y, x] - image[:, v, u]) ** 2).sum())
        matrix[p, q] = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * sigma_xy**2) - colour / (2 * sigma_rgb**2))
    return matrix


def _exact(image: Tensor, sigma_xy: float = 3.0, sigma_rgb: float = 40.0) -> list[ExactAffinity]:
    return [ExactAffinity(losses.place_and_colour(one, sigma_xy, sigma_rgb)) for one in image]


@pytest.mark.parametrize("relaxation", losses.RELAXATIONS)
def test_the_dense_term_is_the_sum_over_all_pairs(probabilities: Tensor, image: Tensor, mask: Tensor, relaxation: str) -> None:
    cut, whole = [], []
    for b in range(B):
        kernel, inside = _gaussian(image[b], 3.0, 40.0), mask[b].flatten()
        s = probabilities[b].flatten(1).T
        total = weight = 0.0
        for p, q in itertools.product(range(H * W), repeat=2):
            if inside[p] and inside[q]:
                each = (s[p] * (1 - s[q])).sum() if relaxation == "bilinear" else ((s[p] - s[q]) ** 2).sum() / 2
                total += float(kernel[p, q] * each)
                weight += float(kernel[p, q])
        cut.append(total)
        whole.append(weight)
    got = losses.dense_crf(probabilities, _exact(image), relaxation=relaxation, mask=mask, reduction="sum")
    assert float(got) == pytest.approx(sum(cut), rel=1e-9)
    got = losses.dense_crf(probabilities, _exact(image), relaxation=relaxation, mask=mask)
    assert float(got) == pytest.approx(np.mean([c / w for c, w in zip(cut, whole, strict=True)]), rel=1e-9)


def test_relaxations_of_the_dense_term_agree_on_one_hot_maps(one_hot: Tensor, image: Tensor) -> None:
    for affinities in (_exact(image), losses.image_affinities(image, 3.0, 40.0)):
        both = [float(losses.dense_crf(one_hot, affinities, relaxation=r)) for r in losses.RELAXATIONS]
        assert both[0] == pytest.approx(both[1], rel=1e-6) and 0 < both[0] < 1


def test_the_dense_term_descends_what_published_code_descends(probabilities: Tensor, image: Tensor) -> None:
    leaf = probabilities.clone().requires_grad_()
    losses.dense_crf(leaf, _exact(image), reduction="sum").backward()
    for b in range(B):
        kernel, s = _gaussian(image[b], 3.0, 40.0), probabilities[b].flatten(1).T
        published = -2 * kernel @ s  # of -S'KS; K1 is the same for all labels, and softmax does not see it
        ours = leaf.grad[b].flatten(1).T
        torch.testing.assert_close(ours - ours.mean(1, keepdim=True), published - published.mean(1, keepdim=True))


# ------------------------------------------------------------------------------------------------------ matrices never made


def _natural(size: int = 40) -> Tensor:
    from skimage.data import astronaut
    from skimage.transform import resize

    return torch.from_numpy(resize(astronaut()[:400, 60:460], (size, size), preserve_range=True, anti_aliasing=True)).permute(2, 0, 1)


def test_the_lattice_is_the_gaussian_but_for_its_approximation() -> None:
    features = losses.place_and_colour(_natural(), 8.0, 25.0)
    values = torch.rand((len(features), 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got, exact = LatticeAffinity(features)(values), ExactAffinity(features)(values)
    strength = got.sum() / exact.sum()  # vertices that no point touches are missing, and what would have passed through them
    assert 0.6 < strength < 1.1
    assert (got / strength - exact).norm() / exact.norm() < 0.1
    ones = torch.ones((len(features), 1), dtype=torch.float64)
    means, expected = got / LatticeAffinity(features)(ones), exact / ExactAffinity(features)(ones)
    assert (means - expected).abs().mean() < 0.01  # of values in [0, 1]


def test_the_lattice_is_symmetric_and_linear() -> None:
    features = losses.place_and_colour(_natural(12), 4.0, 25.0)
    affinity = LatticeAffinity(features)
    matrix = affinity(torch.eye(len(features), dtype=torch.float64))
    torch.testing.assert_close(matrix, matrix.T)
    values = _random(len(features), 3)
    torch.testing.assert_close(affinity(values), matrix @ values)


def test_the_torch_filter_is_the_numpy_filter() -> None:
    from ovseg.lattice import Lattice

    features = losses.place_and_colour(_natural(), 8.0, 25.0).float()
    values = torch.rand((len(features), 3), generator=torch.Generator().manual_seed(1))
    expected = Lattice.build(features.numpy()).filter(values.numpy(), "symmetric")
    np.testing.assert_allclose(LatticeAffinity(features)(values).numpy(), expected, rtol=2e-4, atol=1e-4)


def test_random_features_come_near_the_gaussian_and_nearer_with_their_number() -> None:
    features = _random(60, 5)
    exact = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    errors = []
    for count in (64, 4096):
        z = losses.random_features(features, count)
        torch.testing.assert_close(z.square().sum(1), torch.ones(60, dtype=torch.float64))
        errors.append(float((z @ z.T - exact).abs().mean()))
    assert errors[1] < 0.02 < 0.06 < errors[0] * 1.5
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.5)  # as one over the square root


# ----------------------------------------------------------------------------------------------------------------- clusters


def _kernel_terms(probabilities: Tensor, kernel: Tensor) -> tuple[float, float]:
    """Kernel k-means and normalised cut of one image by their sums over pairs."""
    s = probabilities.flatten(1).T
    means = cut = 0.0
    for k in range(s.shape[1]):
        inside = sum(float(s[p, k] * kernel[p, q] * s[q, k]) for p in range(len(s)) for q in range(len(s)))
        means -= inside / float(s[:, k].sum()) / len(s)
        across = sum(float(s[p, k] * kernel[p, q] * (1 - s[q, k])) for p in range(len(s)) for q in range(len(s)))
        cut += across / float(kernel.sum(1) @ s[:, k])
    return means, cut


def test_clusters_are_the_sums_over_pairs(probabilities: Tensor, image: Tensor) -> None:
    parts = [_kernel_terms(probabilities[b], _gaussian(image[b], 3.0, 40.0)) for b in range(B)]
    expected = np.mean(parts, 0)
    assert float(losses.kernel_kmeans(probabilities, _exact(image))) == pytest.approx(expected[0], rel=1e-9)
    assert float(losses.normalized_cut(probabilities, _exact(image))) == pytest.approx(expected[1], rel=1e-9)


def test_pixels_outside_the_mask_are_not_there(probabilities: Tensor, image: Tensor, mask: Tensor) -> None:
    """The masked loss equals the loss of an image that has only the pixels of the mask."""
    inside = mask[0]
    features = losses.place_and_colour(image[0], 3.0, 40.0)
    row = probabilities[0][:, inside][None, :, None]  # (1, K, 1, n)
    kept = [ExactAffinity(features[inside.flatten()])]
    for loss in (losses.kernel_kmeans, losses.normalized_cut, losses.dense_crf):
        masked = loss(probabilities[:1], [ExactAffinity(features)], mask=mask[:1])
        assert float(masked) == pytest.approx(float(loss(row, kept)), rel=1e-9)


def test_the_linear_kernel_is_ordinary_k_means() -> None:
    """Up to a constant: the sum of squares of all points."""
    from sklearn.cluster import KMeans

    points = np.concatenate([np.random.default_rng(i).normal(3 * i, 1, (10, 2)) for i in range(3)])
    found = KMeans(3, n_init=3, random_state=0).fit(points)
    hard = torch.nn.functional.one_hot(torch.from_numpy(found.labels_).long(), 3).double().T.reshape(1, 3, 5, 6)
    loss = losses.kernel_kmeans(hard, [FeatureAffinity(torch.from_numpy(points))])
    assert float(loss) * 30 + (points**2).sum() == pytest.approx(found.inertia_, rel=1e-10)


def test_clusters_by_random_features_and_by_the_lattice_come_near_the_exact_ones() -> None:
    photo = _natural()
    features = losses.place_and_colour(photo, 15.0, 40.0)
    s = (photo[None] / 30).softmax(1)
    exact, lattice = [ExactAffinity(features)], [LatticeAffinity(features)]
    explicit = [FeatureAffinity(losses.random_features(features, 1024))]
    ones = torch.ones((len(features), 1), dtype=torch.float64)
    strength = float(lattice[0](ones).sum() / exact[0](ones).sum())  # a factor of k-means; the cut is a ratio, where it cancels
    for loss, factor in ((losses.kernel_kmeans, strength), (losses.normalized_cut, 1.0)):
        expected = float(loss(s, exact))
        assert float(loss(s, explicit)) == pytest.approx(expected, rel=0.08)
        assert float(loss(s, lattice)) == pytest.approx(expected * factor, rel=0.05)


def test_a_label_that_nobody_has_adds_a_constant(one_hot: Tensor, image: Tensor) -> None:
    more = torch.cat([one_hot, torch.zeros(B, 1, H, W, dtype=torch.float64)], 1).requires_grad_()
    loss = losses.normalized_cut(more, _exact(image))
    assert float(loss.detach()) == pytest.approx(float(losses.normalized_cut(one_hot, _exact(image))) + 1)
    loss.backward()
    assert torch.isfinite(more.grad).all()


# -------------------------------------------------------------------------------------------------------------------- graph


def test_neighbours_are_those_of_sklearn_and_each_pair_comes_once() -> None:
    from sklearn.neighbors import kneighbors_graph

    points = _random(50, 4)
    edges, weights = losses.nearest_neighbours(points, 5, sigma=1.5)
    graph = kneighbors_graph(points.numpy(), 5).toarray()
    expected = {(i, j) for i, j in zip(*np.nonzero(graph + graph.T), strict=True) if i < j}
    assert len(edges.T) == len(expected) and {tuple(edge) for edge in edges.T.tolist()} == expected
    apart = (points[edges[0]] - points[edges[1]]).square().sum(1)
    torch.testing.assert_close(weights, torch.exp(-apart / (2 * 1.5**2)))


def test_the_graph_term_is_the_laplacian_and_its_minimum_the_harmonic_solution() -> None:
    values = _random(6, 2)
    edges = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 5, 5]])
    weights = torch.tensor([1.0, 0.5, 2.0, 0.3, 1.5, 0.1], dtype=torch.float64)
    adjacency = torch.zeros(6, 6, dtype=torch.float64)
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = weights
    laplacian = adjacency.sum(1).diag() - adjacency
    expected = torch.trace(values.T @ laplacian @ values)
    torch.testing.assert_close(losses.graph_smoothness(values, edges, weights, "sum"), expected)
    torch.testing.assert_close(losses.graph_smoothness(values, edges, weights), expected / weights.sum())
    # two nodes labelled: L_uu f_u = -L_ul y_l has gradient 0 (Zhu et al. 2003)
    known, free = [0, 3], [1, 2, 4, 5]
    values[free] = torch.linalg.solve(laplacian[free][:, free], -laplacian[free][:, known] @ values[known])
    values.requires_grad_()
    losses.graph_smoothness(values, edges, weights, "sum").backward()
    assert values.grad[free].abs().max() < 1e-12 < values.grad[known].abs().max()


# --------------------------------------------------------------------------------------------------------------------- bags


def test_poolings_are_their_formulas() -> None:
    p = torch.tensor([[0.1, 0.7, 0.4], [0.2, 0.2, 0.9]], dtype=torch.float64)
    expected = {
        "max": [0.7, 0.9],
        "noisy-or": [1 - 0.9 * 0.3 * 0.6, 1 - 0.8 * 0.8 * 0.1],
        "log-sum-exp": [math.log(sum(math.exp(4 * v) for v in row) / 3) / 4 for row in p.tolist()],
        "rank": [(0.7 + 0.5 * 0.4 + 0.25 * 0.1) / 1.75, (0.9 + 0.5 * 0.2 + 0.25 * 0.2) / 1.75],
    }
    for pooling in losses.POOLINGS:
        there, not_there = losses.pooled_logs(p, pooling, sharpness=4.0, decay=0.5)
        np.testing.assert_allclose(there.exp(), expected[pooling], rtol=1e-9)
        np.testing.assert_allclose(not_there.exp(), 1 - np.array(expected[pooling]), rtol=1e-9)


def test_rank_pooling_lies_between_the_maximum_and_the_mean() -> None:
    p = torch.rand((4, 100), dtype=torch.float64)
    torch.testing.assert_close(losses.pooled_logs(p, "rank", decay=0.0)[0].exp(), p.amax(1))
    torch.testing.assert_close(losses.pooled_logs(p, "rank", decay=1.0)[0].exp(), p.mean(1))


def test_a_product_of_thousands_of_factors_keeps_its_gradient() -> None:
    logits = torch.zeros((1, 4, 60, 80), requires_grad=True)
    loss = losses.tag_loss(logits.softmax(1), torch.tensor([[1, 0, 0, 1]]), "noisy-or")
    loss.backward()
    assert torch.isfinite(loss) and logits.grad[0, 1].abs().min() > 0  # what is absent is still pushed down everywhere


@pytest.mark.parametrize("pooling", losses.POOLINGS)
def test_tags_are_cross_entropy_over_labels_there_and_not_there(probabilities: Tensor, mask: Tensor, pooling: str) -> None:
    tags = torch.tensor([[1, 0, -1], [1, 1, 1]])
    expected = []
    for b, (there, absent) in enumerate([([0], [1]), ([0, 1, 2], [])]):
        yes, no = losses.pooled_logs(probabilities[b][:, mask[b]], pooling)
        expected.append(-float(yes[there].mean()) - (float(no[absent].mean()) if absent else 0.0))
    assert float(losses.tag_loss(probabilities, tags, pooling, mask=mask)) == pytest.approx(np.mean(expected), rel=1e-9)


def test_boxes_say_nothing_outside_and_something_in_each_line(probabilities: Tensor) -> None:
    boxes = torch.tensor([[1, 1, 2, 4, 5], [0, 0, 0, 2, 2]])
    s = probabilities[0].numpy()
    inside = np.zeros((K, H, W), bool)
    inside[1, 1:4, 2:5] = inside[0, 0:2, 0:2] = True
    lines = []
    for label, top, left, bottom, right in boxes.tolist():
        part = s[label, top:bottom, left:right]
        lines += [*part.max(0), *part.max(1)]
    expected = -np.log(1 - s[~inside]).mean() - np.log(lines).mean()
    assert float(losses.box_loss(probabilities[:1], [boxes])) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("box", [[3, 0, 0, 2, 2], [0, 0, 0, 2, W + 1], [0, 2, 0, 2, 2], [-1, 0, 0, 2, 2]])
def test_boxes_that_cannot_be_are_refused(probabilities: Tensor, box: list[int]) -> None:
    with pytest.raises(InvalidArgumentError, match="A box is"):
        losses.box_loss(probabilities[:1], [torch.tensor([box])])


# ---------------------------------------------------------------------------------------------------------------- gradients

_TAGS = torch.tensor([[1, 0, -1], [1, 1, 0]])
_BOXES = [torch.tensor([[1, 1, 2, 4, 5]]), torch.tensor([[0, 0, 0, 2, 2], [2, 1, 1, 5, 6]])]
_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "pce": lambda x, image, mask: losses.partial_cross_entropy(x, torch.where(mask, 1, 255)),
    "entropy": lambda x, image, mask: losses.entropy(x.softmax(1), mask),
    "quadratic": lambda x, image, mask: losses.pairwise(x.softmax(1), image, neighbourhood=16, mask=mask),
    "bilinear": lambda x, image, mask: losses.pairwise(x.softmax(1), image, relaxation="bilinear"),
    "dense": lambda x, image, mask: losses.dense_crf(x.softmax(1), losses.image_affinities(image, 3.0, 40.0), mask=mask),
    "dense quadratic": lambda x, image, mask: losses.dense_crf(x.softmax(1), _exact(image), relaxation="quadratic"),
    "k-means": lambda x, image, mask: losses.kernel_kmeans(x.softmax(1), losses.image_affinities(image, 3.0, 40.0), mask),
    "cut": lambda x, image, mask: losses.normalized_cut(
        x.softmax(1), [FeatureAffinity(losses.random_features(losses.place_and_colour(one, 3.0, 40.0), 16)) for one in image], mask
    ),
    "graph": lambda x, image, mask: losses.graph_smoothness(
        x.softmax(1)[0].flatten(1).T, *losses.nearest_neighbours(image[0].flatten(1).T, 3)
    ),
    **{f"tags {p}": (lambda x, image, mask, p=p: losses.tag_loss(x.softmax(1), _TAGS, p, mask=mask)) for p in losses.POOLINGS},
    "boxes": lambda x, image, mask: losses.box_loss(x.softmax(1), _BOXES),
}  # fmt: skip


@pytest.mark.parametrize("name", _LOSSES)
def test_gradients_are_those_of_finite_differences(name: str, image: Tensor, mask: Tensor) -> None:
    logits = _random(B, K, H, W, seed=5).requires_grad_()
    assert gradcheck(lambda x: _LOSSES[name](x, image, mask), (logits,))


# ------------------------------------------------------------------------------------------------------------------ garbage


@pytest.mark.parametrize("call", [
    lambda p, i: losses.entropy(p[0]),
    lambda p, i: losses.entropy(p.long()),
    lambda p, i: losses.entropy(p, torch.ones(B, H, W + 1)),
    lambda p, i: losses.pairwise(p, i[:, :, :-1]),
    lambda p, i: losses.pairwise(p, i, neighbourhood=5),
    lambda p, i: losses.pairwise(p, i, relaxation="cubic"),
    lambda p, i: losses.pairwise(p, i, sigma=0.0),
    lambda p, i: losses.dense_crf(p, _exact(i)[:1]),
    lambda p, i: losses.dense_crf(p, _exact(i), reduction="max"),
    lambda p, i: losses.tag_loss(p, torch.ones(B, K + 1)),
    lambda p, i: losses.tag_loss(p, torch.ones(B, K), "mean"),
    lambda p, i: losses.tag_loss(p, torch.ones(B, K), decay=1.5),
    lambda p, i: losses.tag_loss(p, torch.ones(B, K), "log-sum-exp", sharpness=0.0),
    lambda p, i: losses.box_loss(p, []),
    lambda p, i: losses.nearest_neighbours(p.flatten(1), B),
    lambda p, i: losses.place_and_colour(i[0], sigma_rgb=-1.0),
    lambda p, i: losses.random_features(i[0, 0], 0),
    lambda p, i: ExactAffinity(torch.zeros(9000, 2)),
    lambda p, i: losses.image_affinities(i * float("nan")),
    lambda p, i: losses.partial_cross_entropy(p, torch.zeros(B, H, W)),
    lambda p, i: losses.entropy(p, torch.ones(B, H, W)),
    lambda p, i: losses.pairwise(p, i, mask=torch.ones(B, H, W)),
    lambda p, i: losses.dense_crf(p[:, :, 1:], _exact(i)),
    lambda p, i: losses.dense_crf(p[:, :, 1:], losses.image_affinities(i)),
    lambda p, i: losses.normalized_cut(p, _exact(i), torch.ones(B, H, W)),
    lambda p, i: losses.tag_loss(p, torch.full((B, K), 0.5)),
    lambda p, i: losses.tag_loss(p, torch.ones(B, K), mask=torch.ones(B, H, W)),
    lambda p, i: losses.tag_loss(p, torch.ones(B, K), "log-sum-exp", sharpness=float("inf")),
    lambda p, i: losses.graph_smoothness(p[0, 0], torch.tensor([[0], [H]]), torch.ones(1)),
    lambda p, i: losses.graph_smoothness(p[0, 0], torch.tensor([[0], [1]]), torch.ones(1), reduction="max"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(call: Callable[[Tensor, Tensor], object], probabilities: Tensor, image: Tensor) -> None:
    with pytest.raises(InvalidArgumentError):
        call(probabilities, image)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(_LOSSES))
def test_half_precision_is_summed_in_single(name: str, kind: torch.dtype, image: Tensor, mask: Tensor) -> None:
    logits = _random(B, K, H, W, seed=5).to(kind)
    found = _LOSSES[name](logits, image, mask)
    assert found.dtype != kind
    probabilities = logits.softmax(1).double().log()  # what half precision made of the softmax is given to both
    torch.testing.assert_close(found.double(), _LOSSES[name](probabilities, image, mask), rtol=2e-2, atol=2e-3)
