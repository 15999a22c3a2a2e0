"""Thresholds and p-values that are valid for exchangeable data, whatever their distribution."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from selkit.errors import InvalidInputError, NoGuaranteeError
from selkit.utils.arrays import ArrayLike, as_vector, check_fraction
from selkit.utils.boundary import public
from selkit.utils.checks import choice

Vector = npt.NDArray[np.float64]


@public
def conformal_threshold(
    scores: ArrayLike, coverage: float, *, otherwise: Literal["raise", "accept_all"] = "raise"
) -> float:
    """The threshold that a new exchangeable sample stays below with a given probability (split conformal;
    Vovk et al. 2005, Papadopoulos et al. 2002).

    It is the ``ceil((M + 1) coverage)``-th smallest of the M calibration scores. Over calibration sets, a new
    sample is accepted with probability at least ``coverage``, and at most ``coverage + 1 / (M + 1)`` where
    scores have no ties; for one given set the coverage scatters around that like a Beta distribution.

    Parameters
    ----------
    scores
        Scores of calibration samples that took no part in fitting, shape ``(M,)``.
    coverage
        In (0, 1).
    otherwise
        Where M is too small for the promise: ``"raise"``, or ``"accept_all"`` for infinity.

    Returns
    -------
    float
        Accept what scores at most this.

    Raises
    ------
    NoGuaranteeError
        If there are fewer than ``coverage / (1 - coverage)`` samples.
    InvalidInputError
        For a coverage outside (0, 1), no scores, or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> conformal_threshold(np.arange(1.0, 20.0), coverage=0.9)
    18.0
    """
    values = np.sort(as_vector(scores, "scores", finite=False))
    level = check_fraction(coverage, "coverage", zero=False, one=False)
    choice(otherwise, "otherwise", ("raise", "accept_all"))
    rank = _rank(len(values), level)
    if rank <= len(values):
        return float(values[rank - 1])
    if otherwise == "accept_all":
        return math.inf
    needed = math.ceil(round(level / (1 - level), 6))
    needed += int(_rank(needed, level) > needed)  # both are rounded
    raise NoGuaranteeError(
        f"coverage={coverage} needs at least {needed} calibration scores; got {len(values)}. "
        f"Give more, ask for less coverage, or say otherwise='accept_all'"
    )


def _rank(count: int, level: float) -> int:
    """Which of so many scores is the threshold, from 1; more than there are where they are too few."""
    return math.ceil((count + 1) * level - 1e-9)  # 1e-9: 0.9 * 10 is meant to be 9


@public
def conformal_pvalues(calibration: ArrayLike, scores: ArrayLike) -> Vector:
    """p-values of "this sample is from the distribution of the calibration set" (Bates et al. 2023, "Testing
    for outliers with conformal p-values", eq. 3).

    ``p = (1 + #{calibration scores >= score}) / (M + 1)``. For a sample that is exchangeable with the
    calibration set, ``P(p <= t) <= t``.

    Parameters
    ----------
    calibration
        Scores of samples that took no part in fitting, shape ``(M,)``.
    scores
        Scores of the samples in question, shape ``(N,)``.

    Returns
    -------
    ndarray
        Shape ``(N,)``, in ``(0, 1]``; none is below ``1 / (M + 1)``.

    Raises
    ------
    InvalidInputError
        For empty arrays or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> conformal_pvalues(np.arange(9.0), np.array([100.0, 4.0, -1.0]))
    array([0.1, 0.6, 1. ])
    """
    known = np.sort(as_vector(calibration, "calibration", finite=False))
    asked = as_vector(scores, "scores", finite=False)
    at_least = len(known) - np.searchsorted(known, asked, side="left")
    return np.asarray((1.0 + at_least) / (len(known) + 1.0), dtype=np.float64)


@public
def benjamini_hochberg(pvalues: ArrayLike, fdr: float) -> npt.NDArray[np.bool_]:
    """Which hypotheses to reject so that the false discovery rate stays below a level (Benjamini & Hochberg
    1995); conformal p-values of one calibration set depend on each other in the way that this allows (Bates
    et al. 2023, theorem 2).

    Parameters
    ----------
    pvalues
        Shape ``(N,)``, in [0, 1].
    fdr
        In (0, 1).

    Returns
    -------
    ndarray
        Boolean, shape ``(N,)``: the k smallest, for the largest k whose k-th smallest p-value is at most
        ``fdr k / N``.

    Raises
    ------
    InvalidInputError
        For values outside [0, 1] or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> benjamini_hochberg(np.array([0.001, 0.8, 0.02, 0.3]), fdr=0.1)
    array([ True, False,  True, False])
    """
    values = as_vector(pvalues, "pvalues")
    level = check_fraction(fdr, "fdr", zero=False, one=False)
    if values.min() < 0 or values.max() > 1:
        raise InvalidInputError(f"pvalues must be in [0, 1]; got {values.min():g} to {values.max():g}")
    count = len(values)
    passed = np.sort(values) <= level * np.arange(1, count + 1) / count
    if not passed.any():
        return np.zeros(count, dtype=bool)
    largest = np.sort(values)[passed.nonzero()[0][-1]]
    return np.asarray(values <= largest)
