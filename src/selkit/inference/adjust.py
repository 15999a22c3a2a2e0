"""Many p-values at once: adjusted p-values, and which hypotheses to reject."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from selkit import calibration
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.arrays import as_tensor, check_fraction
from selkit.utils.boundary import public

Method: TypeAlias = Literal["bh", "by", "bonferroni", "none"]
METHODS: tuple[Method, ...] = get_args(Method)

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


def adjusted_p_values(p_values: ArrayLike, method: Method = "bh") -> Floats:
    """Adjust p-values for how many there are: reject where the adjusted one is at most the level.

    Parameters
    ----------
    p_values
        Of shape (N,), in [0, 1]; NaN where nothing was tested, which counts for nothing.
    method
        "bh": false discovery rate, for p-values that are independent or positively dependent (Benjamini &
        Hochberg 1995); "by": the same under any dependence (Benjamini & Yekutieli 2001); "bonferroni":
        probability of any false rejection; "none".

    Returns
    -------
    ndarray of shape (N,), float64
        NaN where ``p_values`` is.

    Raises
    ------
    InvalidInputError
        For values outside [0, 1] or an unknown method.

    Examples
    --------
    >>> adjusted_p_values([0.01, float("nan"), 0.04])
    array([0.02,  nan, 0.04])
    """
    values, tested = _checked(p_values)
    if method not in METHODS:
        raise InvalidInputError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    known = values[tested]
    result = np.full(len(values), np.nan)
    if not len(known):
        return result
    if method == "bonferroni":
        known = np.minimum(known * len(known), 1.0)
    elif method != "none":
        known = np.asarray(false_discovery_control(known, method=method))
    result[tested] = known
    return result


@public
def benjamini_hochberg(p_values: ArrayLike, alpha: float) -> Flags:
    """Which hypotheses to reject so that the false discovery rate is at most ``alpha``.

    It is :func:`selkit.calibration.benjamini_hochberg`, which also takes images that could not be tested.

    Parameters
    ----------
    p_values
        Of shape (N,), in [0, 1]; NaN where nothing was tested: never rejected, and counts for nothing.
    alpha
        In (0, 1).

    Returns
    -------
    ndarray of shape (N,), bool

    Raises
    ------
    InvalidInputError
        For p-values or an ``alpha`` out of range.

    Examples
    --------
    >>> benjamini_hochberg([0.001, float("nan"), 0.02, 0.3], alpha=0.05)
    array([ True, False,  True, False])
    """
    values, tested = _checked(p_values)
    level = check_fraction(alpha, "alpha", zero=False, one=False)
    rejected = np.zeros(len(values), dtype=bool)
    if tested.any():
        rejected[tested] = calibration.benjamini_hochberg(values[tested], level)
    return rejected


@public
def benjamini_yekutieli(p_values: ArrayLike, alpha: float) -> Flags:
    """Which hypotheses to reject so that the false discovery rate is at most ``alpha``, however the
    p-values depend on each other (Benjamini & Yekutieli 2001, theorem 1.3).

    Parameters
    ----------
    p_values, alpha
        As for :func:`benjamini_hochberg`.

    Returns
    -------
    ndarray of shape (N,), bool

    Raises
    ------
    InvalidInputError
        For p-values or an ``alpha`` out of range.

    Examples
    --------
    >>> benjamini_yekutieli([0.001, float("nan"), 0.02, 0.3], alpha=0.05)
    array([ True, False, False, False])
    """
    tested = _checked(p_values)[1]
    level = check_fraction(alpha, "alpha", zero=False, one=False)
    harmonic = float(np.sum(1.0 / np.arange(1, max(int(tested.sum()), 1) + 1)))
    return benjamini_hochberg(p_values, level / harmonic)


def rejected(p_values: ArrayLike, alpha: float, method: Method = "bh") -> Flags:
    """Which hypotheses one of the methods of :func:`adjusted_p_values` rejects at a level.

    Parameters
    ----------
    p_values, method
        As for :func:`adjusted_p_values`.
    alpha
        In (0, 1).

    Returns
    -------
    ndarray of shape (N,), bool

    Raises
    ------
    InvalidInputError
        For p-values or an ``alpha`` out of range, or an unknown method.

    Examples
    --------
    >>> rejected([0.01, 0.04, 0.03], alpha=0.05, method="bonferroni")
    array([ True, False, False])
    """
    if method == "bh":
        return benjamini_hochberg(p_values, alpha)
    if method == "by":
        return benjamini_yekutieli(p_values, alpha)
    level = check_fraction(alpha, "alpha", zero=False, one=False)
    return np.asarray(adjusted_p_values(p_values, method) <= level)


def _checked(p_values: ArrayLike) -> tuple[Floats, Flags]:
    """Return the p-values, and which of them are not NaN."""
    try:
        values = as_tensor(p_values, "p_values").double().cpu().numpy()
    except InvalidTypeError as error:
        raise InvalidTypeError(f"p_values must be numbers, one for each hypothesis: {error}") from error
    if values.ndim != 1:
        raise InvalidInputError(
            f"p_values has shape {values.shape}; give one number for each hypothesis, shape (N,)"
        )
    tested = ~np.isnan(values)
    known = values[tested]
    if len(known) and not (known.min() >= 0 and known.max() <= 1):
        raise InvalidInputError(f"p_values must lie in [0, 1]; got {known.min():g} to {known.max():g}")
    return values, tested
