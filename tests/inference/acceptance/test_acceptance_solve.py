"""Sets on pieces, and the solvers: against roots of polynomials and dense grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selkit.inference.acceptance.solve import difference_below, quadratic_below
from selkit.inference.acceptance.spans import Spans, covered, together

GRID = np.linspace(0, 1, 1001)


def inside(spans: Spans, t: np.ndarray = GRID) -> np.ndarray:
    found = np.zeros((spans.count, len(t)), bool)
    for row, low, high in zip(spans.row, spans.low, spans.high, strict=True):
        found[row] |= (t >= low) & (t <= high)
    return found


def random_spans(seed: int, rows: int = 7, count: int = 40) -> Spans:
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.uniform(-0.2, 1.2, (count, 2)), 1).round(1)
    return Spans.of(rng.integers(0, rows, count), ends[:, 0], ends[:, 1], rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("need", [1, 2, 3])
def test_covered_counts_intervals(seed, need):
    spans = random_spans(seed)
    points = np.linspace(0.05, 0.95, 10)  # no ends there
    counts = np.zeros((spans.count, len(points)), int)
    for row, low, high in zip(spans.row, spans.low, spans.high, strict=True):
        counts[row] += (points >= low) & (points <= high)
    wanted = np.full(spans.count, need)
    wanted[0] = 1
    found = covered(spans, wanted)
    assert np.array_equal(inside(found, points), counts >= wanted[:, None])
    for row in range(spans.count):
        mine = found.row == row
        assert (found.low[mine][1:] > found.high[mine][:-1]).all()


@pytest.mark.parametrize("seed", range(5))
def test_complement_and_together(seed):
    points = np.linspace(0.05, 0.95, 10)
    first, second = covered(random_spans(seed)), covered(random_spans(seed + 100))
    assert np.array_equal(inside(first.complement(), points), ~inside(first, points))
    both = inside(first, points) & inside(second, points)
    assert np.array_equal(inside(together([first, second], 2), points), both)
    assert np.array_equal(
        inside(together([first, second]), points), inside(first, points) | inside(second, points)
    )


def test_nothing_and_everything():
    nothing = Spans.where(np.zeros(3, bool))
    assert not len(covered(nothing).row)
    assert inside(nothing.complement()).all()
    assert not inside(Spans.where(np.ones(3, bool)).complement()).any()


def polynomial_truth(a: float, b: float, c: float) -> np.ndarray:
    """On which side each point of the grid lies, by numpy's roots; 0 where a root is too near to tell."""
    roots = np.roots([a, b, c]) if (a, b) != (0, 0) else np.empty(0)
    real = roots[np.abs(roots.imag) < 1e-7].real
    near = (np.abs(GRID[:, None] - real[None]) < 1e-6).any(1) if len(real) else np.zeros(len(GRID), bool)
    side = np.where(a * GRID**2 + b * GRID + c <= 0, 1, -1)
    return np.where(near, 0, side)


coefficient = st.one_of(st.just(0.0), st.floats(-3, 3).filter(lambda v: abs(v) > 1e-3))


@settings(max_examples=300, deadline=None)
@given(coefficient, coefficient, coefficient)
def test_quadratics_agree_with_their_roots(a, b, c):
    array = [np.array([value]) for value in (a, b, c)]
    found = inside(covered(quadratic_below(np.array([0]), *array, 1)))[0]
    truth = polynomial_truth(a, b, c)
    if (a, b, c) != (0, 0, 0):
        assert (found[truth != 0] == (truth[truth != 0] > 0)).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 1.0, 1e150])
def test_roots_of_quadratics_keep_their_digits(scale):
    # (t - 1e-9)(t - 0.5): the small root would be lost in -b + sqrt(b^2 - 4 a c).
    a, b, c = scale, -scale * (0.5 + 1e-9), scale * 0.5e-9
    found = quadratic_below(np.array([0]), np.array([a]), np.array([b]), np.array([c]), 1)
    assert found.low[0] == pytest.approx(1e-9, rel=1e-14)
    assert found.high[0] == pytest.approx(0.5, rel=1e-14)


def parts_of(f, df, g, dg):
    def parts(t, row):
        return f(t, row), df(t, row), g(t, row), dg(t, row)

    return parts


@pytest.mark.parametrize("seed", range(8))
def test_differences_of_convex_functions_agree_with_a_grid(seed):
    rng = np.random.default_rng(seed)
    count, terms = 50, 4
    slope, level = rng.normal(size=(2, count, terms)) * 5
    shift = rng.normal(size=count)

    def values(t, row):
        z = level[row] + slope[row] * t[:, None]
        smooth = np.log(np.exp(z).sum(1))
        weight = np.exp(z - smooth[:, None])
        largest = z.max(1)
        steep = slope[row][np.arange(len(t)), z.argmax(1)]
        wave = 6 * (t - 0.5) ** 2
        return (
            smooth + wave,
            (weight * slope[row]).sum(1) + 12 * (t - 0.5),
            largest + shift[row],
            steep,
        )

    found = difference_below(values, count)
    rows = np.repeat(np.arange(count), len(GRID))
    g, _, h, _ = values(np.tile(GRID, count), rows)
    truth = (g - h).reshape(count, -1)
    clear = np.abs(truth) > 1e-9
    assert (inside(found) == (truth <= 0))[clear].all()
    ends, owner = np.concatenate([found.low, found.high]), np.concatenate([found.row, found.row])
    inner = (ends > 0) & (ends < 1)
    g, _, h, _ = values(ends[inner], owner[inner])
    assert inner.sum() > 10
    assert np.abs(g - h).max() < 1e-13 * np.abs(g).max()


def test_a_narrow_dip_between_kinks_is_found():
    # |t - 0.37| - 1e-12 is negative on an interval of 2e-12.
    def parts(t, row):
        away = t - 0.37
        return np.abs(away), np.sign(away), np.full(len(t), 1e-12), np.zeros(len(t))

    found = difference_below(parts, 1)
    assert found.low[0] == pytest.approx(0.37 - 1e-12, abs=1e-15)
    assert found.high[0] == pytest.approx(0.37 + 1e-12, abs=1e-15)


def test_touching_the_level_ends():
    def parts(t, row):
        away = t - 1 / 3
        return away**2, 2 * away, np.zeros(len(t)), np.zeros(len(t))

    found = difference_below(parts, 4)
    assert (found.high - found.low < 1e-6).all()
