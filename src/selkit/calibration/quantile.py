"""The empirical quantile of calibration scores: no guarantee, but what most people mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from selkit.errors import InvalidInputError
from selkit.utils.arrays import ArrayLike, as_vector, check_fraction
from selkit.utils.boundary import public
from selkit.utils.checks import given


@public
def quantile_threshold(scores: ArrayLike, q: float, *, method: str = "linear") -> float:
    """The empirical quantile of calibration scores.

    Parameters
    ----------
    scores
        Scores of calibration samples, shape ``(M,)``.
    q
        Fraction to select, in [0, 1].
    method
        As in :func:`numpy.quantile`. ``"inverted_cdf"`` selects at least the fraction ``q`` of the
        calibration set itself; ``"linear"`` interpolates, as torch and seapig do.

    Returns
    -------
    float
        Accept what scores at most this.

    Raises
    ------
    InvalidInputError
        For ``q`` outside [0, 1], an unknown method, no scores, or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> quantile_threshold(np.arange(11.0), 0.9)
    9.0
    """
    values = as_vector(scores, "scores", finite=False)
    q = check_fraction(q, "q")
    chosen: Any = method
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            found = float(np.quantile(values, q, method=chosen))
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"method={given(method)} is not one of numpy.quantile's: {error}") from error
    # between two infinities, or two numbers whose difference overflows
    if not np.isfinite(found) and not (np.isinf(values) & (values == found)).any():
        found = float(np.quantile(values, q, method="higher"))
    return found
