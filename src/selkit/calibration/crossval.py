"""Scores of every training sample by a model that did not see it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.checks import given


def cross_val_scores(
    estimator: Any, X: Any, y: Any = None, *, cv: Any = 5, groups: Any = None
) -> npt.NDArray[np.float64]:
    """Out-of-fold scores: each sample is scored by a copy that was fitted without its fold.

    With them no calibration set has to be held back: ``score.set_threshold(q, scores=...)`` or
    ``score.calibrate(coverage=..., scores=...)``, after fitting on everything. The final fit has seen more
    data than each copy, so the finite-sample promise of split conformal does not hold as it stands (Barber
    et al. 2021, "Predictive inference with the jackknife+", prove ``2 coverage - 1`` for related procedures);
    for stable scores the difference is small.

    Parameters
    ----------
    estimator
        A score, or a scikit-learn ``Pipeline`` that ends in one; it is cloned, never fitted itself.
    X, y, groups
        As scikit-learn takes them.
    cv
        Number of folds, or a scikit-learn splitter. Scalers and projections before the score are fitted anew
        in each fold, so nothing leaks.

    Returns
    -------
    ndarray
        Shape ``(N,)``, higher is less like the training data.

    Raises
    ------
    InvalidInputError
        If the folds do not cover all samples.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from selkit.scores import EuclideanScore
    >>> X = np.random.default_rng(0).normal(size=(100, 3))
    >>> pipe = make_pipeline(StandardScaler(), EuclideanScore(k=2))
    >>> scores = cross_val_scores(pipe, X)
    >>> _ = pipe.fit(X)
    >>> _ = pipe[-1].set_threshold(0.9, scores=scores)
    >>> pipe.predict(X[:3])
    array([1, 1, 1])
    """
    from sklearn.base import clone
    from sklearn.model_selection import check_cv
    from sklearn.utils import _safe_indexing, indexable

    if not callable(getattr(estimator, "score_samples", None)):
        raise InvalidTypeError(
            f"estimator must be a score or a Pipeline that ends in one; got {given(estimator)}"
        )
    X, y, groups = indexable(X, y, groups)
    scores = np.full(len(X), np.nan)
    try:
        splits = list(check_cv(cv).split(X, y, groups))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"cv={given(cv)} does not split {len(scores)} samples: {error}") from error
    for train, test in splits:
        labels = None if y is None else _safe_indexing(y, train)
        fold = clone(estimator).fit(_safe_indexing(X, train), labels)
        scores[test] = -np.asarray(fold.score_samples(_safe_indexing(X, test)), dtype=np.float64)
    if np.isnan(scores).any():
        raise InvalidInputError(
            f"cv={cv!r} leaves {int(np.isnan(scores).sum())} of {len(scores)} samples in no test fold; "
            "use folds that cover all of them"
        )
    return scores
