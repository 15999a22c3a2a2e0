"""The risk-coverage curve with an interval at each point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from selkit.utils.boundary import public
from selkit.utils.checks import integer

if TYPE_CHECKING:
    from selkit.utils.arrays import ArrayLike

Floats = NDArray[np.float64]


@public
def risk_coverage_interval(
    score: ArrayLike,
    loss: ArrayLike,
    *,
    points: int = 25,
    n_boot: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Risk at evenly spaced coverages, each with a bootstrap interval.

    Parameters
    ----------
    score, loss
        One number per sample, ``(N,)``, finite.
    points
        Coverages: ``1 / points`` to 1, but none that accepts less than one sample.
    n_boot, confidence, seed
        As in :func:`selkit.metrics.bootstrap_risk_coverage`.

    Returns
    -------
    tuple of ndarray
        Coverage, risk, lower and upper end, float64, ``(points,)`` each: what ``risk_coverage`` of
        :class:`selkit.report.Report` takes. The interval is that of each point by itself.

    Raises
    ------
    InvalidInputError
        As :func:`selkit.metrics.bootstrap_risk_coverage`.

    Examples
    --------
    >>> import numpy as np
    >>> draw = np.random.default_rng(0)
    >>> score = draw.random(300)
    >>> coverage, risk, lower, upper = risk_coverage_interval(score, draw.random(300) < score)
    >>> bool((lower <= upper).all()), round(float(coverage[-1]), 2)
    (True, 1.0)
    """
    from selkit.metrics import bootstrap_risk_coverage, risk_coverage
    from selkit.metrics.functional import as_vector_tensor

    integer(points, "points", 1, 100_000)
    score_ = as_vector_tensor(score, "score")
    loss_ = as_vector_tensor(loss, "loss").double()
    at = np.arange(1, points + 1) / points
    at = at[at * len(score_) >= 1 - 1e-9]
    coverages = [float(c) for c in at]
    bounds = bootstrap_risk_coverage(
        score_, loss_, coverage=coverages, n_boot=n_boot, confidence=confidence, seed=seed
    )
    curve = risk_coverage(score=score_, loss=loss_)
    risk = np.array([float(curve.risk_at_coverage(c)) for c in coverages])
    lower, upper = (
        np.array([float(bounds[f"risk_at_coverage_{c:g}_{side}"]) for c in coverages])
        for side in ("lower", "upper")
    )
    return at, risk, lower, upper
