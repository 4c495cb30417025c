"""The permutohedral lattice against brute force and against a plain reading of the paper, point by point."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovseg.errors import InvalidArgumentError
from ovseg.lattice import Lattice


def gaussian(features: np.ndarray) -> np.ndarray:
    """All pairs: (N, N) float64."""
    squares = ((features[:, None].astype(np.float64) - features[None]) ** 2).sum(-1)
    return np.exp(-squares / 2)


def simplex(place: np.ndarray) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Find the vertices around a point of the hyperplane, and its barycentric coordinates, by trying what is near."""
    d = len(place) - 1
    cell = np.floor(place / (d + 1)).astype(int)
    for up in itertools.product((0, 1), repeat=d + 1):
        base = (cell + up) * (d + 1)  # of remainder 0
        offset = place - base
        if base.sum() == 0 and offset.max() - offset.min() <= d + 1:
            break
    else:
        raise AssertionError("no simplex holds the point")
    corners = []
    for remainder in range(d + 1):
        corner = base + remainder
        corner[np.argsort(-offset)[d + 1 - remainder :]] -= d + 1
        corners.append(tuple(corner.tolist()))
    system = np.vstack([np.array(corners, float).T, np.ones(d + 1)])
    weights, *_ = np.linalg.lstsq(system, np.append(place, 1), rcond=None)
    assert np.allclose(system @ weights, np.append(place, 1), atol=1e-6)
    return corners, weights


def by_hand(features: np.ndarray, values: np.ndarray, directions: list[int]) -> np.ndarray:
    """Splat, blur along the directions and slice, with a dictionary of vertices; the scale is left out."""
    d = features.shape[1]
    basis = np.zeros((d, d + 1))
    for i in range(d):
        basis[i, : i + 1], basis[i, i + 1] = 1, -(i + 1)
    basis *= (d + 1) * math.sqrt(2 / 3) / np.linalg.norm(basis, axis=1, keepdims=True)
    centred = features.astype(np.float64) - (features.min(0) / 2 + features.max(0) / 2)
    points = [simplex(place) for place in centred @ basis]
    table: dict[tuple[int, ...], np.ndarray] = {}
    for (corners, weights), value in zip(points, values, strict=True):
        for corner, weight in zip(corners, weights, strict=True):
            table[corner] = table.get(corner, 0) + weight * value
    for direction in directions:
        step = np.ones(d + 1, int)
        step[direction] = -d
        near = {corner: [tuple((np.array(corner) + sign * step).tolist()) for sign in (-1, 1)] for corner in table}
        table = {corner: value + sum(table.get(other, 0) for other in near[corner]) / 2 for corner, value in table.items()}
    return np.array([sum(weight * table[corner] for corner, weight in zip(*point, strict=True)) for point in points])


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_equals_a_lattice_made_point_by_point(d, order):
    random = np.random.default_rng(d)
    features = (random.standard_normal((60, d)) * 2).astype(np.float32)
    values = random.standard_normal((60, 2)).astype(np.float32)
    lattice = Lattice.build(features)
    directions = list(range(d + 1)) if order == "forward" else list(range(d, -1, -1))
    np.testing.assert_allclose(
        lattice.filter(values, order), lattice.scale * by_hand(features, values, directions), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("d", "spread", "bound"), [(1, 8, 0.01), (2, 8, 0.02), (3, 4, 0.03), (4, 4, 0.05), (5, 4, 0.1)])
def test_is_near_the_gaussian_of_all_pairs(d, spread, bound):
    random = np.random.default_rng(0)
    features = (random.random((1500, d)) * spread).astype(np.float32)
    values = random.random((1500, 3)).astype(np.float32)
    lattice, exact = Lattice.build(features), gaussian(features)
    result, wanted = lattice.filter(values), exact @ values
    assert np.linalg.norm(result - wanted) < bound * np.linalg.norm(wanted)
    mean = result / lattice.filter(np.ones((1500, 1), np.float32))
    wanted /= exact.sum(1, keepdims=True)
    assert np.linalg.norm(mean - wanted) < 0.015 * np.linalg.norm(wanted)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_integral_of_the_response(d):
    """Far from the border, the response to even values of density 1 is the integral of the Gaussian."""
    steps = {1: 0.02, 2: 0.1, 3: 0.35}[d]
    axis = np.arange(-6, 6, steps)
    features = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d).astype(np.float32)
    response = Lattice.build(features).filter(np.full((len(features), 1), steps**d, np.float32))
    middle = np.abs(features).max(1) < 1
    assert response[middle].mean() == pytest.approx((2 * math.pi) ** (d / 2), rel=0.01)


def test_orders_are_transposes_and_their_mean_is_symmetric():
    random = np.random.default_rng(3)
    features = (random.random((150, 5)) * 3).astype(np.float32)
    lattice, one = Lattice.build(features), np.eye(150, dtype=np.float32)
    forward, reverse, symmetric = (lattice.filter(one, order) for order in ("forward", "reverse", "symmetric"))
    assert np.abs(forward - forward.T).max() > 1e-3  # else the options would say nothing
    np.testing.assert_allclose(forward, reverse.T, atol=1e-6)
    np.testing.assert_allclose(symmetric, symmetric.T, atol=1e-6)
    np.testing.assert_allclose(symmetric, (forward + reverse) / 2, atol=1e-6)


def test_the_public_arrays_are_the_filter():
    random = np.random.default_rng(4)
    features = (random.random((200, 4)) * 3).astype(np.float32)
    values = random.random((200, 3)).astype(np.float32)
    lattice = Lattice.build(features)
    table = np.zeros((lattice.size + 1, 3))
    for k in range(5):
        np.add.at(table, lattice.vertices[:, k], lattice.weights[:, k, None] * values)
    for before, after in lattice.neighbours.transpose(0, 2, 1):
        table[:-1] += (table[before] + table[after]) / 2
    result = sum(lattice.scale * lattice.weights[:, k, None] * table[lattice.vertices[:, k]] for k in range(5))
    np.testing.assert_allclose(lattice.filter(values), result, rtol=1e-5)
    assert set(lattice.vertices.ravel().tolist()) == set(range(lattice.size))


def test_neighbours_are_mutual():
    features = (np.random.default_rng(5).random((300, 3)) * 4).astype(np.float32)
    lattice = Lattice.build(features)
    for pair in lattice.neighbours:
        here = np.flatnonzero(pair[:, 1] < lattice.size)
        assert len(here)
        np.testing.assert_array_equal(pair[pair[here, 1], 0], here)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 20.0]))
def test_weights_and_range(count, d, seed, spread):
    features = (np.random.default_rng(seed).standard_normal((count, d)) * spread).astype(np.float32)
    lattice = Lattice.build(features)
    assert lattice.weights.min() >= -1e-5
    np.testing.assert_allclose(lattice.weights.sum(1), 1, atol=1e-5)
    assert lattice.neighbours.shape == (d + 1, lattice.size, 2)
    filtered = lattice.filter(np.ones((count, 1), np.float32))
    assert (filtered > 0).all() and np.isfinite(filtered).all()


@pytest.mark.parametrize("grid", [1.0, 0.5, math.sqrt(2) / 6])
def test_points_on_vertices_and_facets(grid):
    """Ties of the ranks and of the rounding."""
    features = np.stack(np.meshgrid(*[np.arange(-3, 4) * grid] * 2), -1).reshape(-1, 2).astype(np.float32)
    lattice = Lattice.build(features)
    assert lattice.weights.min() >= -1e-6
    values = np.ones((len(features), 1), np.float32)
    assert np.abs(lattice.filter(values) / (gaussian(features) @ values) - 1).mean() < 0.25


def test_equal_points_and_one_point():
    one = Lattice.build(np.zeros((1, 5), np.float32)).filter(np.ones((1, 1), np.float32))
    many = Lattice.build(np.full((50, 5), 3e4, np.float32)).filter(np.ones((50, 1), np.float32))
    np.testing.assert_allclose(many, 50 * one[0, 0], rtol=1e-5)


def test_moving_all_points_changes_nothing():
    features = (np.random.default_rng(6).integers(0, 64, (100, 3)) / 16).astype(np.float32)
    values = np.arange(100, dtype=np.float32)[:, None]
    np.testing.assert_allclose(Lattice.build(features).filter(values), Lattice.build(features + 1024).filter(values), rtol=1e-5)


def test_no_channels():
    assert Lattice.build(np.zeros((3, 2), np.float32)).filter(np.zeros((3, 0), np.float32)).shape == (3, 0)


@pytest.mark.parametrize(
    "features",
    [
        *(np.zeros((0, 2)), np.zeros((2, 0)), np.zeros(3), np.array([[np.nan]]), np.array([[np.inf]])),
        np.arange(20.0)[:, None] * 1e7 * np.ones(9),
        np.arange(20.0)[:, None] * 1e37,
    ],
)
def test_refuses_features(features):
    with pytest.raises(InvalidArgumentError):
        Lattice.build(features.astype(np.float32))


def test_refuses_values_and_orders():
    lattice = Lattice.build(np.zeros((3, 2), np.float32))
    for values in (np.zeros(3), np.zeros((2, 1))):
        with pytest.raises(InvalidArgumentError, match=r"\(3, C\)"):
            lattice.filter(values.astype(np.float32))
    with pytest.raises(InvalidArgumentError, match="symmetric"):
        lattice.filter(np.zeros((3, 1), np.float32), "backward")
