"""Normal and chi distributions truncated to a union of intervals: p-values, their bounds, and estimates.

Masses are kept as logarithms, so that a truncation set of mass 1e-300 costs no digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammainc, gammaincc, gammaln, log_ndtr

from selkit.errors import InvalidInputError
from selkit.inference.intervals import LINE, Intervals, complement

Alternative = Literal["two-sided", "greater", "less"]
ALTERNATIVES: tuple[Alternative, ...] = get_args(Alternative)


class Distribution(Protocol):
    """The null distribution of a statistic before truncation."""

    @property
    def support(self) -> Intervals:
        """Where the density is positive."""
        ...

    def log_mass(self, intervals: Intervals) -> NDArray[np.float64]:
        """Logarithm of the probability of each interval."""
        ...

    def log_density(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithm of the density."""
        ...


def _log_difference(larger: NDArray[np.float64], smaller: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``log(exp(larger) - exp(smaller))``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.where(larger == smaller, 0.0, smaller - larger)
        return np.asarray(
            larger + np.where(gap > -np.log(2.0), np.log(-np.expm1(gap)), np.log1p(-np.exp(gap)))
        )


@dataclass(frozen=True)
class Normal:
    """The normal distribution with unit variance.

    Attributes
    ----------
    mean
        Its mean: the null value of a standardised statistic.
    """

    mean: float = 0.0

    @property
    def support(self) -> Intervals:
        """The real line."""
        return LINE

    def log_mass(self, intervals: Intervals) -> NDArray[np.float64]:
        """Logarithm of the probability of each interval, exact in both tails."""
        lower, upper = intervals[:, 0] - self.mean, intervals[:, 1] - self.mean
        flip = lower > 0  # in the right tail, work on the mirrored interval: there log_ndtr keeps its digits
        low, high = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
        return _log_difference(log_ndtr(high), log_ndtr(low))

    def log_density(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithm of the density."""
        return np.asarray(-0.5 * (points - self.mean) ** 2 - 0.5 * np.log(2 * np.pi))


@dataclass(frozen=True)
class Chi:
    """The chi distribution, that of the length of a standard normal vector.

    Attributes
    ----------
    df
        Degrees of freedom: the number of contrasts tested together.
    """

    df: int

    @property
    def support(self) -> Intervals:
        """Lengths are not negative."""
        return np.array([[0.0, np.inf]])

    def log_mass(self, intervals: Intervals) -> NDArray[np.float64]:
        """Logarithm of the probability of each interval."""
        half = np.maximum(intervals, 0.0) ** 2 / 2
        with np.errstate(divide="ignore"):
            below = np.log(gammainc(self.df / 2, half))
        above = _log_gammaincc(self.df / 2, half)
        right = half[:, 0] > self.df / 2  # beyond the mean, survival functions keep their digits
        return np.where(
            right, _log_difference(above[:, 0], above[:, 1]), _log_difference(below[:, 1], below[:, 0])
        )

    def log_density(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithm of the density."""
        shape = self.df / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            power = np.where(points == 0, 0.0 if self.df == 1 else -np.inf, (self.df - 1) * np.log(points))
            value = power - points**2 / 2 - (shape - 1) * np.log(2) - gammaln(shape)
        return np.asarray(np.where(points < 0, -np.inf, value))


def _log_gammaincc(shape: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the regularized upper incomplete gamma function, also where it underflows."""
    with np.errstate(divide="ignore"):
        value = np.log(gammaincc(shape, x))
    far = np.isfinite(x) & (value < -600)
    if np.any(far):
        value[far] = shape * np.log(x[far]) - x[far] - gammaln(shape) + np.log(_upper_fraction(shape, x[far]))
    return np.asarray(value)


def _upper_fraction(shape: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Legendre's continued fraction of Gamma(shape, x) x^-shape e^x, from the back (DLMF 8.9.2)."""
    value = np.zeros_like(x)
    for k in range(200, 0, -1):
        value = k * (k - shape) / (x + 2 * k + 1 - shape - value)
    return np.asarray(1.0 / (x + 1 - shape - value))


def check_alternative(alternative: str) -> Alternative:
    """Return ``alternative`` if it is one of scipy's names.

    Raises
    ------
    InvalidInputError
        For anything else.
    """
    if alternative not in ALTERNATIVES:
        raise InvalidInputError(
            f"alternative is {alternative!r}; it must be one of {', '.join(ALTERNATIVES)}"
        )
    return alternative


def log_mass(distribution: Distribution, intervals: Intervals) -> float:
    """Logarithm of the probability of a union of intervals."""
    return logsumexp(distribution.log_mass(intervals))


def logsumexp(values: NDArray[np.float64]) -> float:
    """Logarithm of the sum of exponentials of a vector; scipy's costs more than all the rest here."""
    largest = float(values.max()) if len(values) else -np.inf
    return largest if not np.isfinite(largest) else largest + float(np.log(np.exp(values - largest).sum()))


def _halves(distribution: Distribution, stat: float, intervals: Intervals) -> tuple[float, float]:
    """Logarithms of the probability of ``intervals`` left and right of the statistic."""
    left, right = intervals[intervals[:, 0] < stat], intervals[intervals[:, 1] > stat]
    return (
        log_mass(distribution, np.minimum(left, stat)),
        log_mass(distribution, np.maximum(right, stat)),
    )


def _cdf(left: float, right: float) -> float:
    """exp(left) / (exp(left) + exp(right)) without overflow."""
    if left == -np.inf and right == -np.inf:
        return 0.5
    return float(1.0 / (1.0 + np.exp(np.clip(right - left, -700.0, 700.0))))


def _p_value(left: float, right: float, alternative: Alternative) -> float:
    below, above = _cdf(left, right), _cdf(right, left)
    if alternative == "two-sided":
        return min(1.0, 2.0 * min(below, above))
    return above if alternative == "greater" else below


def p_value(
    distribution: Distribution, stat: float, truncation: Intervals, alternative: Alternative = "two-sided"
) -> float:
    """Return the p-value of a statistic under a truncated distribution.

    Parameters
    ----------
    distribution
        The distribution before truncation.
    stat
        The observed statistic.
    truncation
        Where the selection is the observed one.
    alternative
        As in scipy: "greater" rejects for large statistics; "two-sided" doubles the smaller tail.

    Examples
    --------
    >>> round(p_value(Normal(), 1.96, LINE), 3)
    0.05
    >>> round(p_value(Normal(), 1.96, np.array([[1.5, np.inf]]), "greater"), 3)
    0.374
    """
    return _p_value(*_halves(distribution, stat, truncation), alternative)


def p_value_bounds(
    distribution: Distribution,
    stat: float,
    truncation: Intervals,
    searched: Intervals,
    alternative: Alternative = "two-sided",
) -> tuple[float, float]:
    """Return bounds of the p-value when only part of the line has been searched.

    What lies outside ``searched`` may or may not belong to the truncation set: the extremes are that all
    of it on one side of the statistic does and none on the other (Shiraishi et al. 2023, arXiv 2307.11351).

    Returns
    -------
    lower, upper : float
    """
    left, right = _halves(distribution, stat, truncation)
    open_left, open_right = _halves(distribution, stat, complement(searched))
    most_left, most_right = float(np.logaddexp(left, open_left)), float(np.logaddexp(right, open_right))
    if left == -np.inf and right == -np.inf:
        return 0.0, 1.0
    ends = [_p_value(left, most_right, alternative), _p_value(most_left, right, alternative)]
    straddles = alternative == "two-sided" and _cdf(left, most_right) <= 0.5 <= _cdf(most_left, right)
    return min(ends), 1.0 if straddles else max(ends)


def _solve_mean(function: Callable[[float], float], start: float) -> float:
    """Root of a decreasing function of the mean, bracketed by doubling steps away from ``start``."""
    step = 1.0
    lower = upper = start
    for _ in range(60):
        if function(lower) < 0:
            lower -= step
        elif function(upper) > 0:
            upper += step
        else:
            return float(brentq(function, lower, upper, xtol=1e-10, rtol=1e-12))
        step *= 1.5
    # The truncation set can be so narrow that a limit lies beyond any number worth reporting.
    return -np.inf if function(lower) < 0 else np.inf


def confidence_interval(stat: float, truncation: Intervals, confidence: float = 0.95) -> tuple[float, float]:
    """Return the selective confidence interval of the mean of a truncated normal statistic.

    Equal tails: the means at which the statistic is at the ``(1 +- confidence) / 2`` quantile (Lee et al.
    2016, "Exact post-selection inference, with application to the lasso").

    Parameters
    ----------
    stat
        The observed, standardised statistic.
    truncation
        The truncation set.
    confidence
        Coverage, in (0, 1).

    Examples
    --------
    >>> lower, upper = confidence_interval(1.0, LINE)
    >>> round(lower, 2), round(upper, 2)
    (-0.96, 2.96)
    """
    if not 0.0 < confidence < 1.0:
        raise InvalidInputError(f"confidence is {confidence}; it must lie in (0, 1)")
    tail = (1.0 - confidence) / 2

    def excess(level: float) -> Callable[[float], float]:
        def value(mean: float) -> float:
            left, right = _halves(Normal(mean), stat, truncation)
            # log odds are monotone in the mean and stay finite where the cdf has become 0 or 1
            return float(np.clip(left - right, -1e6, 1e6)) - float(np.log(level / (1 - level)))

        return value

    return (
        _solve_mean(excess(1 - tail), stat),
        _solve_mean(excess(tail), stat),
    )


def median_unbiased(stat: float, truncation: Intervals) -> float:
    """Return the mean at which the statistic is the median of its truncated distribution.

    Examples
    --------
    >>> round(median_unbiased(1.5, LINE), 6)
    1.5
    """

    def value(mean: float) -> float:
        left, right = _halves(Normal(mean), stat, truncation)
        return float(np.clip(left - right, -1e6, 1e6))

    return _solve_mean(value, stat)


def maximum_likelihood(stat: float, truncation: Intervals) -> float:
    """Return the mean that maximizes the likelihood of the statistic under truncation.

    It solves ``E[Z | Z in truncation] = stat``; infinite when the statistic is at an outer end of the set.

    Examples
    --------
    >>> round(maximum_likelihood(1.5, LINE), 6)
    1.5
    """
    rows = as_array(truncation)
    if stat >= rows[-1, 1]:
        return np.inf
    if stat <= rows[0, 0]:
        return -np.inf

    def value(mean: float) -> float:
        return stat - _truncated_mean(mean, rows)

    return _solve_mean(value, stat)


def _truncated_mean(mean: float, truncation: Intervals) -> float:
    """Mean of a normal distribution with unit variance truncated to a union of intervals."""
    rows = truncation
    masses = Normal(mean).log_mass(rows)
    weights = np.exp(masses - logsumexp(masses))
    with np.errstate(invalid="ignore", over="ignore"):
        edges = np.exp(np.where(np.isinf(rows), -np.inf, Normal(mean).log_density(rows)) - masses[:, None])
        means = mean + np.nan_to_num(edges[:, 0] - edges[:, 1], nan=0.0)
    # In a short interval far out, the difference cancels: the mean lies in the interval anyway.
    return float(weights @ np.clip(means, rows[:, 0], rows[:, 1]))


def as_array(truncation: Intervals) -> Intervals:
    """Return a non-empty union as an array."""
    rows = np.asarray(truncation, dtype=np.float64).reshape(-1, 2)
    if not len(rows):
        raise InvalidInputError(
            "the truncation set is empty; it must contain at least the observed statistic"
        )
    return rows
