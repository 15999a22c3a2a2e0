"""Truncated distributions against scipy, mpmath and simulation."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy import stats

from selkit.errors import InvalidInputError
from selkit.inference.intervals import EMPTY, LINE, contains
from selkit.inference.truncated import (
    Chi,
    Normal,
    check_alternative,
    confidence_interval,
    log_mass,
    maximum_likelihood,
    median_unbiased,
    p_value,
    p_value_bounds,
)

HALVES = np.array([[-2.0, -1.0], [0.5, 1.0], [1.5, np.inf]])


def mass(rv: object, intervals: np.ndarray) -> float:
    return float(sum(rv.cdf(high) - rv.cdf(low) for low, high in intervals))  # type: ignore[attr-defined]


@pytest.mark.parametrize("mean", [-1.0, 0.0, 2.5])
def test_normal_mass_is_scipys(mean: float) -> None:
    expected = mass(stats.norm(mean), HALVES)
    assert np.exp(log_mass(Normal(mean), HALVES)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("df", [1, 2, 5, 40])
def test_chi_mass_and_density_are_scipys(df: int) -> None:
    rows = np.array([[0.0, 0.7], [1.0, 3.0], [6.0, 8.0]])
    expected = np.log([stats.chi(df).cdf(high) - stats.chi(df).cdf(low) for low, high in rows[:2]])
    np.testing.assert_allclose(Chi(df).log_mass(rows[:2]), expected, rtol=1e-9)
    points = np.array([0.3, 1.0, 7.0])
    np.testing.assert_allclose(Chi(df).log_density(points), stats.chi(df).logpdf(points), rtol=1e-10)


@pytest.mark.parametrize(("low", "high"), [(8.0, 8.5), (35.0, 36.0), (60.0, 60.01), (-41.0, -40.0)])
def test_normal_tails_keep_their_digits(low: float, high: float) -> None:
    with mpmath.workdps(40):
        tail = [mpmath.erfc(mpmath.mpf(abs(end)) / mpmath.sqrt(2)) / 2 for end in (low, high)]
        expected = float(mpmath.log(abs(tail[0] - tail[1])))
    assert Normal().log_mass(np.array([[low, high]]))[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("df", "low", "high"), [(1, 45.0, 46.0), (3, 50.0, 51.0), (20, 60.0, np.inf)])
def test_chi_tails_keep_their_digits(df: int, low: float, high: float) -> None:
    with mpmath.workdps(60):
        half = mpmath.mpf(df) / 2
        upper = mpmath.inf if np.isinf(high) else mpmath.mpf(high) ** 2 / 2
        expected = float(mpmath.log(mpmath.gammainc(half, mpmath.mpf(low) ** 2 / 2, upper, regularized=True)))
    assert Chi(df).log_mass(np.array([[low, high]]))[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("stat", [-1.5, 0.75, 2.0])
def test_p_values_follow_scipys_alternatives(stat: float) -> None:
    rv = stats.norm()
    total = mass(rv, HALVES)
    below = mass(rv, np.array([[low, min(high, stat)] for low, high in HALVES if low < stat])) / total
    assert p_value(Normal(), stat, HALVES, "less") == pytest.approx(below)
    assert p_value(Normal(), stat, HALVES, "greater") == pytest.approx(1 - below)
    assert p_value(Normal(), stat, HALVES) == pytest.approx(2 * min(below, 1 - below))
    for alternative in ("less", "greater"):
        expected = stats.ttest_1samp([stat - 1, stat + 1], 0, alternative=alternative).pvalue
        assert (p_value(Normal(), stat, LINE, alternative) < 0.5) == (expected < 0.5)


def test_p_values_are_uniform_under_truncation() -> None:
    draws = np.random.default_rng(0).normal(size=20_000)
    draws = draws[contains(HALVES, draws)][:2000]
    right = [p_value(Normal(), float(draw), HALVES) for draw in draws]
    naive = [p_value(Normal(), float(draw), LINE) for draw in draws]
    assert stats.kstest(right, "uniform").pvalue > 0.01
    assert stats.kstest(naive, "uniform").pvalue < 1e-6


def test_bounds_contain_every_completion() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        stat = float(rng.normal())
        searched = np.array([[stat - rng.uniform(0.1, 2), stat + rng.uniform(0.1, 2)]])
        inside = np.array([[stat - 0.05, stat + 0.05]])
        outside = [(searched[0, 1] + low, searched[0, 1] + low + 0.3) for low in rng.uniform(0, 2, 2)]
        outside += [(searched[0, 0] - low - 0.3, searched[0, 0] - low) for low in rng.uniform(0, 2, 2)]
        chosen = [row for row in outside if rng.random() < 0.5]
        full = np.array([*inside, *chosen]).reshape(-1, 2)
        for alternative in ("two-sided", "less", "greater"):
            lower, upper = p_value_bounds(Normal(), stat, inside, searched, alternative)
            assert lower <= p_value(Normal(), stat, full, alternative) + 1e-12
            assert p_value(Normal(), stat, full, alternative) <= upper + 1e-12


def test_bounds_are_tight_and_open_without_knowledge() -> None:
    assert p_value_bounds(Normal(), 0.3, EMPTY, EMPTY) == (0.0, 1.0)
    lower, upper = p_value_bounds(Normal(), 0.3, LINE, LINE)
    assert lower == upper == pytest.approx(p_value(Normal(), 0.3, LINE))


def test_far_statistics_give_p_values_not_nan() -> None:
    truncation = np.array([[54.0, 57.0]])
    value = p_value(Normal(), 55.0, truncation, "greater")
    assert 0 < value < 1
    assert p_value(Normal(), -55.0, -truncation[:, ::-1], "less") == pytest.approx(value)


def test_confidence_interval_inverts_the_p_value() -> None:
    lower, upper = confidence_interval(0.8, HALVES, 0.9)
    assert p_value(Normal(lower), 0.8, HALVES, "greater") == pytest.approx(0.05, rel=1e-6)
    assert p_value(Normal(upper), 0.8, HALVES, "less") == pytest.approx(0.05, rel=1e-6)


def test_confidence_intervals_cover() -> None:
    rng, mean, hits, trials = np.random.default_rng(2), 0.7, 0, 0
    naive = 0
    for draw in rng.normal(mean, size=700):
        if not contains(HALVES, draw):
            continue
        trials += 1
        lower, upper = confidence_interval(float(draw), HALVES, 0.9)
        hits += lower <= mean <= upper
        naive += abs(draw - mean) <= stats.norm.ppf(0.95)
    margin = 3 * np.sqrt(0.9 * 0.1 / trials)
    assert abs(hits / trials - 0.9) < margin
    assert abs(naive / trials - 0.9) > margin


def test_estimates_solve_their_equations() -> None:
    truncation = np.array([[0.5, 2.0]])
    median = median_unbiased(1.0, truncation)
    assert p_value(Normal(median), 1.0, truncation, "less") == pytest.approx(0.5)
    likely = maximum_likelihood(1.0, truncation)
    assert stats.truncnorm(0.5 - likely, 2.0 - likely, loc=likely).mean() == pytest.approx(1.0, abs=1e-7)
    assert maximum_likelihood(2.0, truncation) == np.inf
    assert maximum_likelihood(0.5, truncation) == -np.inf


def test_bad_arguments_say_what_is_accepted() -> None:
    with pytest.raises(InvalidInputError, match="alternative is 'bigger'; it must be one of two-sided"):
        check_alternative("bigger")
    with pytest.raises(InvalidInputError, match=r"confidence is 1\.5"):
        confidence_interval(0.0, LINE, 1.5)
    with pytest.raises(InvalidInputError, match="truncation set is empty"):
        maximum_likelihood(0.0, EMPTY)
