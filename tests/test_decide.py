from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ovseg import decide
from ovseg.decide import Priority, Rules
from ovseg.errors import InvalidArgumentError

Floats = NDArray[np.float32]


def brute(scores: Floats, rules: Rules) -> list[list[int | None]]:
    """Decide pixel by pixel, in the words of the module's head; None is undecided."""
    rows, height, width = scores.shape
    over = {(p.winner, p.loser): p.ratio for p in rules.priorities}
    beneath: dict[int, set[int]] = {label: set() for label in range(rows)}
    for _ in range(rows):  # closure
        for winner, loser in over:
            beneath[winner] |= {loser} | beneath[loser]
    answer: list[list[int | None]] = [[None] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            value = scores[:, y, x]
            best = max(range(rows), key=lambda label: (value[label], -label))
            while True:
                able = [w for (w, loser), ratio in over.items() if loser == best and value[w] >= np.float32(ratio) * value[best]]
                if not able:
                    break
                best = max(able, key=lambda label: value[label])
            if best >= rules.count:
                continue
            if rules.thresholds is not None and value[best] < rules.thresholds[best]:
                continue
            rivals = [value[label] for label in range(rows) if label != best and label not in beneath[best]]
            if rules.margin and value[best] - max(rivals, default=np.float32(0)) < np.float32(rules.margin):
                continue
            answer[y][x] = best
    return answer


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Rules]:
    count, others = draw(st.integers(1, 6)), draw(st.integers(0, 2))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = random.random((count + others, 3, 4), np.float32)
    scores /= scores.sum(0)
    order = draw(st.permutations(range(count)))
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=5)) if pairs else []
    ratios = random.uniform(0.2, 1, len(chosen))
    priorities = decide.in_order([Priority(a, b, float(r)) for (a, b), r in zip(chosen, ratios, strict=True)])
    thresholds = random.uniform(0, 0.5, count).astype(np.float32) if draw(st.booleans()) else None
    return scores, Rules(count, thresholds, draw(st.sampled_from([0, 0.05, 0.3])), priorities)


@settings(max_examples=150, deadline=None)
@given(case=cases(), step=st.integers(1, 3))
def test_decisions_are_those_of_brute_force(case: tuple[Floats, Rules], step: int) -> None:
    scores, rules = case
    strips = [(slice(top, top + step), scores[:, top : top + step]) for top in range(0, 3, step)]
    found = decide.decide(strips, (3, 4), rules, scores=True, confidence=True)
    expected = [[255 if label is None else label for label in row] for row in brute(scores, rules)]
    assert found.segmentation.tolist() == expected
    assert np.array_equal(found.scores, scores[: rules.count])
    for y in range(3):
        for x in range(4):
            label = expected[y][x]
            assert found.confidence[y, x] == (scores[: rules.count, y, x].max() if label == 255 else scores[label, y, x])


@settings(max_examples=60, deadline=None)
@given(case=cases(), data=st.data())
def test_the_order_of_labels_does_not_matter(case: tuple[Floats, Rules], data: st.DataObject) -> None:
    scores, rules = case
    order = data.draw(st.permutations(range(rules.count)))
    place = {label: position for position, label in enumerate(order)}
    moved = np.concatenate([scores[order], scores[rules.count :]])
    other = Rules(
        rules.count,
        None if rules.thresholds is None else rules.thresholds[order],
        rules.margin,
        decide.in_order([Priority(place[p.winner], place[p.loser], p.ratio) for p in rules.priorities]),
    )
    first = decide.decide([(slice(0, 3), scores)], (3, 4), rules).segmentation
    second = decide.decide([(slice(0, 3), moved)], (3, 4), other).segmentation
    assert np.array_equal(np.append(order, [255] * 256)[np.where(second == 255, rules.count, second)], first)


def test_scores_are_not_written_to() -> None:
    scores = np.random.default_rng(1).random((4, 5, 6), np.float32)
    kept = scores.copy()
    scores.setflags(write=False)
    rules = Rules(3, np.full(3, 0.2, np.float32), 0.1, (Priority(0, 1, 0.5),))
    decide.decide([(slice(0, 5), scores)], (5, 6), rules, scores=True, confidence=True)
    assert np.array_equal(scores, kept)


def test_priority_takes_what_is_near_and_nothing_else() -> None:
    sidewalk = np.array([[0.5, 0.5, 0.5, 0.1]], np.float32)
    curb = np.array([[0.24, 0.25, 0.4, 0.2]], np.float32)
    road = np.array([[0.26, 0.25, 0.1, 0.7]], np.float32)
    rules = Rules(3, priorities=(Priority(1, 0, 0.5),))
    found = decide.decide([(slice(0, 1), np.stack([sidewalk, curb, road]))], (1, 4), rules)
    assert found.segmentation.tolist() == [[0, 1, 1, 2]]


def test_priorities_go_up_a_chain() -> None:
    scores = np.array([0.5, 0.3, 0.2], np.float32)[:, None, None]  # road, sidewalk, curb
    rules = Rules(3, priorities=decide.in_order([Priority(2, 1, 0.6), Priority(1, 0, 0.6)]))
    assert decide.decide([(slice(0, 1), scores)], (1, 1), rules).segmentation.item() == 2
    alone = Rules(3, priorities=(Priority(2, 0, 0.6),))
    assert decide.decide([(slice(0, 1), scores)], (1, 1), alone).segmentation.item() == 0


def test_a_label_with_priority_need_not_be_ahead_of_those_beneath_it() -> None:
    scores = np.array([[0.48, 0.44], [0.47, 0.46], [0.05, 0.1]], np.float32)[:, :, None]
    rules = Rules(3, margin=0.3, priorities=(Priority(1, 0, 0.5),))
    assert decide.decide([(slice(0, 2), scores)], (2, 1), rules).segmentation.ravel().tolist() == [1, 1]
    assert decide.decide([(slice(0, 2), scores)], (2, 1), Rules(3, margin=0.3)).segmentation.ravel().tolist() == [255, 255]


def test_entropy_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(3).random((7, 4, 5), np.float32)
    scores[2] = 0
    expected = stats.entropy(scores.astype(np.float64), axis=0) / math.log(7)
    assert np.abs(decide.normalised_entropy(scores) - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("scores", "entropy"), [([1, 0, 0], 0), ([0.2, 0.2, 0.2], 1), ([0, 0, 0], 1), ([1], 0), ([0], 0), ([0.5, 0.5], 1), ([1e-38, 0], 0)]
)
def test_entropy_at_its_ends(scores: list[float], entropy: float) -> None:
    found = decide.normalised_entropy(np.array(scores, np.float32)[:, None, None])
    assert found.dtype == np.float32
    assert found.item() == pytest.approx(entropy, abs=1e-6)


def test_sums_over_groups() -> None:
    scores = np.random.default_rng(4).random((6, 3, 2), np.float32) / 6
    members = np.array([1, 0, 1, 2, 0, 1])
    [(rows, found)] = list(decide.summed([(slice(0, 3), scores)], members))
    expected = [scores[members == group].sum(0) for group in range(3)]
    assert rows == slice(0, 3)
    assert np.abs(found - expected).max() < 1e-6
    full = np.full((3, 1, 1), 0.34, np.float32)
    assert decide.summed([(slice(0, 1), full)], np.zeros(3, int)).__next__()[1].max() == 1


def test_dense_scores_and_strips_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(5).random((3, 11, 7), np.float32)
    monkeypatch.setattr(decide, "STRIP_BYTES", 3 * 7 * 4 * 2)
    strips = list(decide.cut(scores))
    assert [rows.start for rows, _ in strips] == [0, 2, 4, 6, 8, 10]
    assert np.array_equal(decide.gather(strips, 3, (11, 7)), scores)
    assert np.abs(decide.total_scores(strips) - scores.sum((1, 2))).max() < 1e-4


@pytest.mark.parametrize(("count", "kind", "ignore"), [(1, np.uint8, 255), (255, np.uint8, 255), (256, np.uint16, 65535)])
def test_the_type_of_a_map_holds_its_labels(count: int, kind: type, ignore: int) -> None:
    scores = np.zeros((count + 1, 1, 2), np.float32)
    scores[count, 0, 0] = scores[count - 1, 0, 1] = 1
    rules = Rules(count)
    for found in (decide.decide([(slice(0, 1), scores)], (1, 2), rules), decide.from_map(scores.argmax(0).astype(np.uint16), rules)):
        assert (found.segmentation.dtype, found.ignore_index) == (kind, ignore)
        assert found.segmentation.tolist() == [[ignore, count - 1]]


def test_scores_too_large_for_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(np, "empty", empty)
    with pytest.raises(InvalidArgumentError, match=r"5 labels at 2000 x 1000 pixels take 0\.0 GiB"):
        decide.room_for_scores(5, (1000, 2000))
