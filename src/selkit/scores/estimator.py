"""What makes a score the last step of a scikit-learn ``Pipeline``, without importing scikit-learn."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from selkit.errors import NotFittedError
from selkit.utils.arrays import check_fraction
from selkit.utils.boundary import public

if TYPE_CHECKING:
    from selkit.scores.base import UncertaintyScore


def called_by_sklearn() -> bool:
    """Whether the function that asks was called by scikit-learn itself.

    Its searches call ``score`` for one number, which everywhere else gives one for each query.
    """
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") == public.__module__ and frame.f_back is not None:
        frame = frame.f_back  # the wrapper of public methods is no caller
    return str(frame.f_globals.get("__name__", "")).startswith("sklearn.")


class OutlierEstimator:
    """scikit-learn's conventions for outlier detectors, on top of ``score``.

    There, higher is more normal: ``score_samples`` is the negated score, ``decision_function`` is the
    threshold minus the score, and ``predict`` is 1 for what is selected and -1 for what is not.
    """

    _estimator_type = "outlier_detector"

    def score_samples(self: UncertaintyScore, X: Any) -> npt.NDArray[np.floating[Any]]:  # type: ignore[misc]
        """The negated score: higher is more like the training data.

        Parameters
        ----------
        X
            Queries, shape ``(N, D)``.

        Returns
        -------
        ndarray
            Shape ``(N,)``.
        """
        result: npt.NDArray[np.floating[Any]] = -self.score(X).cpu().numpy()
        return result

    def decision_function(self: UncertaintyScore, X: Any) -> npt.NDArray[np.floating[Any]]:  # type: ignore[misc]
        """Threshold minus score: not negative for what is selected.

        Parameters
        ----------
        X
            Queries, shape ``(N, D)``.

        Returns
        -------
        ndarray
            Shape ``(N,)``.

        Raises
        ------
        NotFittedError
            Without a single threshold.
        """
        if not isinstance(self.threshold, Tensor) or self.threshold.ndim:
            raise NotFittedError(
                f"{type(self).__name__} needs one threshold for this: call set_threshold or calibrate first"
            )
        score = self.score(X)
        result: npt.NDArray[np.floating[Any]] = (self.threshold.to(score) - score).cpu().numpy()
        return result

    def predict(self: UncertaintyScore, X: Any) -> npt.NDArray[np.int64]:  # type: ignore[misc]
        """1 for what is selected, -1 for what is not.

        Parameters
        ----------
        X
            Queries, shape ``(N, D)``.

        Returns
        -------
        ndarray
            Shape ``(N,)``.
        """
        return np.where(self.select(X)["selected"].cpu().numpy(), 1, -1)

    def fit_predict(  # type: ignore[misc]
        self: UncertaintyScore, X: Any, y: Any = None, *, q: float = 0.99
    ) -> npt.NDArray[np.int64]:
        """Fit, put the threshold at a quantile of out-of-sample scores of the references, and judge these.

        Parameters
        ----------
        X, y
            As in ``fit``.
        q
            Fraction of the references to select.

        Returns
        -------
        ndarray
            1 for references that are selected and -1 for those that are not, ``(N,)``: each by a score that
            has not seen it, for neighbour scores the distance to the others, for other scores that of a fit
            without its fifth of the data.
        """
        from selkit.calibration.crossval import cross_val_scores

        q = check_fraction(q, "q")
        own = self.fit(X, y)._self_scores()
        known = cross_val_scores(self, X, y) if own is None else own.double().cpu().numpy()
        self.set_threshold(q, scores=known)
        if not isinstance(self.threshold, Tensor):
            raise NotFittedError(f"{type(self).__name__} found no threshold")
        return np.where(known <= float(self.threshold), 1, -1)

    def __sklearn_is_fitted__(self: UncertaintyScore) -> bool:  # type: ignore[misc]
        return self.is_fitted

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags

        return Tags(estimator_type="outlier_detector", target_tags=TargetTags(required=False))
