"""Thresholds with a promise about the loss on what is accepted.

Candidates are the calibration scores by rank. Given the value v of the j-th smallest score, the samples that
score less than v are independent draws of what ``score < v`` accepts, so their losses test the hypothesis
that the risk of accepting below v is too high. That also holds for tied scores.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from selkit.errors import InvalidInputError, NoGuaranteeError
from selkit.utils.arrays import ArrayLike, as_tensor, as_vector, check_fraction
from selkit.utils.boundary import public
from selkit.utils.checks import choice

Vector = npt.NDArray[np.float64]
Method: TypeAlias = Literal["ltt", "sgr"]

GRID = 128  # ranks that Learn-then-Test looks at, at most
STARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # coverages where it begins


def _pair(mean: npt.ArrayLike, count: npt.ArrayLike) -> tuple[Vector, Vector]:
    """Means and counts as arrays that go together."""
    observed, number = (
        as_tensor(values, name).double().cpu().numpy() for values, name in ((mean, "mean"), (count, "count"))
    )
    if np.isnan(observed).any() or not np.all((observed >= 0) & (observed <= 1)) or not np.all(number >= 0):
        raise InvalidInputError("mean must be in [0, 1], and count at least 0")
    try:
        np.broadcast_shapes(observed.shape, number.shape)
    except ValueError as error:
        raise InvalidInputError(
            f"mean has shape {observed.shape} and count {number.shape}; give one count for each mean"
        ) from error
    return observed, number


@public
def binomial_pvalue(mean: npt.ArrayLike, count: npt.ArrayLike, risk: float) -> Vector:
    """p-value of "the risk is above ``risk``" for losses that are 0 or 1: the exact binomial tail.

    Inverted, it is the bound of Geifman & El-Yaniv (2017, lemma 3.1) and of Clopper & Pearson.

    Parameters
    ----------
    mean, count
        Mean of the losses and their number.
    risk
        In (0, 1).

    Returns
    -------
    ndarray
        1 where there are no losses.
    """
    from scipy import stats  # half a second, which importing a score should not cost

    check_fraction(risk, "risk", zero=False, one=False)
    observed, number = _pair(mean, count)
    errors = np.rint(observed * number)
    result: Vector = np.asarray(stats.binom.cdf(errors, number, risk), dtype=float)
    return np.where(number > 0, result, 1.0)


@public
def hoeffding_bentkus_pvalue(mean: npt.ArrayLike, count: npt.ArrayLike, risk: float) -> Vector:
    """p-value of "the risk is above ``risk``" for losses in [0, 1] (Bates et al. 2021, "Distribution-free,
    risk-controlling prediction sets", theorem 5; Angelopoulos et al. 2021, "Learn then Test", eq. 6).

    Parameters
    ----------
    mean, count
        Mean of the losses and their number.
    risk
        In (0, 1).

    Returns
    -------
    ndarray
        The smaller of Hoeffding's (in its relative-entropy form) and e times the binomial tail; 1 where there
        are no losses.
    """
    from scipy import stats

    check_fraction(risk, "risk", zero=False, one=False)
    observed, number = _pair(mean, count)
    below = np.minimum(observed, risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(below > 0, below * np.log(below / risk), 0.0)
        entropy = first + (1 - below) * np.log((1 - below) / (1 - risk))
    hoeffding = np.exp(-number * entropy)
    # rounded before rounding up: a sum of 0/1 losses is a whole number
    bentkus = math.e * stats.binom.cdf(np.ceil(np.round(number * observed, 9)), number, risk)
    return np.where(number > 0, np.minimum(1.0, np.minimum(hoeffding, bentkus)), 1.0)


@public
def risk_threshold(
    scores: ArrayLike,
    losses: ArrayLike,
    risk: float,
    *,
    confidence: float = 0.95,
    method: Method = "ltt",
    otherwise: Literal["raise", "accept_nothing"] = "raise",
) -> float:
    """The threshold of largest coverage whose selective risk is at most ``risk``, with a given confidence.

    Over repeated calibration sets of independent samples, the mean loss on accepted new samples exceeds
    ``risk`` in at most the fraction ``1 - confidence`` of the repetitions.

    Parameters
    ----------
    scores
        Scores of calibration samples that took no part in fitting, shape ``(M,)``.
    losses
        Their losses, in [0, 1], shape ``(M,)``.
    risk
        In (0, 1).
    confidence
        In (0, 1).
    method
        ``"ltt"``: Learn-then-Test (Angelopoulos et al. 2021): ranks on a fixed grid are tested upwards from
        several starts until the first that fails, by the binomial bound of Geifman & El-Yaniv for losses 0
        or 1, and by Hoeffding-Bentkus for others. ``"sgr"``, for losses 0 or 1 only: the search of Geifman &
        El-Yaniv 2017, "Selective classification for deep neural networks", algorithm 1: by halves, each at
        ``(1 - confidence) / ceil(log2 M)``. It finds no larger coverage on average, and its proof takes it
        that the risk does not fall as more is accepted.
    otherwise
        Where no threshold can be promised: ``"raise"``, or ``"accept_nothing"`` for minus infinity.

    Returns
    -------
    float
        Accept what scores at most this; infinity where everything may be accepted.

    Raises
    ------
    NoGuaranteeError
        If no threshold can promise it.
    InvalidInputError
        For losses outside [0, 1], another length than the scores, NaN, or ``method="sgr"`` with losses
        between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.arange(1000.0)
    >>> losses = (scores >= 800).astype(float)  # right below 800, wrong above
    >>> 800 < risk_threshold(scores, losses, risk=0.05) < 840
    True
    """
    order, sorted_scores, sorted_losses = _sorted(scores, losses)
    target = check_fraction(risk, "risk", zero=False, one=False)
    delta = 1 - check_fraction(confidence, "confidence", zero=False, one=False)
    binary = bool(np.isin(sorted_losses, (0.0, 1.0)).all())
    choice(method, "method", ("ltt", "sgr"))
    choice(otherwise, "otherwise", ("raise", "accept_nothing"))
    if method == "sgr" and not binary:
        raise InvalidInputError("method='sgr' needs losses that are 0 or 1; use 'ltt' for others in [0, 1]")
    below, means = _below(sorted_scores, sorted_losses)
    pvalue = (binomial_pvalue if binary else hoeffding_bentkus_pvalue)(means, below, target)
    found = _binary_search(pvalue, delta) if method == "sgr" else _fixed_sequences(pvalue, delta)
    if found is not None and below[found] > 0:
        return math.inf if found == len(order) else float(np.nextafter(sorted_scores[found], -math.inf))
    if otherwise == "accept_nothing":
        return -math.inf
    needed = _needed(target, delta, method)
    raise NoGuaranteeError(
        f"no threshold can promise a risk of at most {risk} with confidence {confidence} on these "
        f"{len(order)} samples (mean loss {sorted_losses.mean():.3g}; even without any loss at least "
        f"{needed} samples are needed). Give more samples, allow more risk, or say otherwise='accept_nothing'"
    )


def _needed(target: float, delta: float, method: Method) -> int:
    """The smallest number of samples without any loss for which a threshold is found."""
    one = math.log1p(-target)  # the p-value of n samples without loss is (1 - risk)^n, by every bound

    def samples(share: int) -> int:
        """How many make a p-value as small as a share of delta."""
        wanted = (math.log(delta) - math.log(share)) / one - 1e-12
        return max(1, math.ceil(min(wanted, 1e18)))  # a risk next to 0 needs no number that can be written

    if method == "sgr":  # the first step looks at half of the samples, and all below has larger p-values
        steps = 1
        while 2 * samples(steps) - 1 > 2**steps - 1:
            steps += 1
        return int(max(2 * samples(steps) - 1, 2 ** (steps - 1)))
    count = samples(1)
    while count <= 4 * GRID:  # few samples have fewer starts, as some coincide
        if count * one <= math.log(delta) - math.log(len(_grid(count)[1])) + 1e-12:
            return count
        count += 1
    return samples(len(STARTS))


def _sorted(scores: ArrayLike, losses: ArrayLike) -> tuple[npt.NDArray[np.intp], Vector, Vector]:
    values, costs = as_vector(scores, "scores", finite=False), as_vector(losses, "losses")
    if len(values) != len(costs):
        raise InvalidInputError(
            f"losses must be one for each score: {len(values)} scores, {len(costs)} losses"
        )
    if costs.min() < 0 or costs.max() > 1:
        raise InvalidInputError(
            f"losses must be in [0, 1]; got {costs.min():g} to {costs.max():g}. "
            "Divide them by their largest possible value"
        )
    order = np.argsort(values, kind="stable")
    return order, values[order], costs[order]


def _below(scores: Vector, losses: Vector) -> tuple[npt.NDArray[np.intp], Vector]:
    """For each rank, and for accepting all: how many samples score less, and their mean loss."""
    below = np.append(np.searchsorted(scores, scores, side="left"), len(scores))
    sums = np.append(0.0, np.cumsum(losses))[below]
    return below, sums / np.maximum(below, 1)


def _binary_search(pvalue: Vector, delta: float) -> int | None:
    """The highest rank that a binary search finds to pass; every step spends the same share of delta."""
    steps = max(1, math.ceil(math.log2(len(pvalue))))
    low, high, found = 0, len(pvalue) - 1, None
    while low <= high:
        middle = (low + high + 1) // 2
        if pvalue[middle] <= delta / steps:
            low, found = middle + 1, middle
        else:
            high = middle - 1
    return found


def _fixed_sequences(pvalue: Vector, delta: float) -> int | None:
    """The highest rank reached by walking up from any start while tests pass; starts share delta."""
    grid, starts = _grid(len(pvalue) - 1)
    passed = pvalue[grid] <= delta / len(starts)
    reached = None
    for start in starts:
        failed = np.flatnonzero(~passed[start:])
        end = start + (failed[0] if len(failed) else len(grid) - start) - 1
        reached = int(grid[end]) if end >= start and (reached is None or grid[end] > reached) else reached
    return reached


def _grid(count: int) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.intp]]:
    """Ranks that are tested among so many samples, and where among them sequences start."""
    grid = np.unique(np.rint(np.linspace(0, count, GRID + 1)[1:]).astype(int))
    return grid, np.unique(np.searchsorted(grid, np.array(STARTS) * count))
