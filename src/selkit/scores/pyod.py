"""Any detector of PyOD as a score."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.scores.base import UncertaintyScore
from selkit.scores.pca import TensorPCA, fitted_projection, rebuilt_projection


class PyODScore(UncertaintyScore):
    """The ``decision_function`` of a PyOD detector.

    A fitted detector is a Python object: it is pickled into ``save`` files and into the ``state_dict``.
    Unpickling can run any code, so it needs consent: ``PyODScore.load(path, trust=True)``, or
    :meth:`unpickle` after ``load_state_dict``.

    Some detectors (ECOD, COPOD) score a query by its rank among the queries of the same call, so that its
    score depends on its batch; others do not.

    Parameters
    ----------
    detector
        Any object with PyOD's ``fit(X)`` and ``decision_function(X)``, higher for outliers; a copy of it is
        fitted.
    pca
        Detect among principal components: a :class:`TensorPCA`, or the number of components.

    Examples
    --------
    >>> import torch
    >>> from pyod.models.knn import KNN
    >>> X = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> score = PyODScore(KNN(n_neighbors=1)).fit(X=X)
    >>> near, far = score.score(torch.stack([X[0], X[0] + 100]))
    >>> bool(near < far)
    True
    """

    unsaved = ("detector",)
    buffer_names = ("pickled",)
    pickled: Tensor | None
    detector: Any
    pca: TensorPCA | float | None

    def __init__(self, detector: Any = None, pca: TensorPCA | float | None = None) -> None:
        super().__init__()
        self.keep(detector=detector, pca=pca)
        self.projection: TensorPCA | None = None
        self._fitted_detector: Any = None

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        from sklearn.base import clone

        if not all(callable(getattr(self.detector, name, None)) for name in ("fit", "decision_function")):
            raise InvalidTypeError(
                "detector must have fit(X) and decision_function(X), like those of pyod.models; "
                f"got {type(self.detector).__name__}"
            )
        self.projection = None if self.pca is None else fitted_projection(self.pca, X)
        detector = clone(self.detector)
        detector.fit(self._array(X))
        self._fitted_detector = detector

    def _array(self, X: Tensor) -> np.ndarray[Any, Any]:
        inside = X if self.projection is None else self.projection.transform(X)
        array: np.ndarray[Any, Any] = inside.cpu().numpy()
        return array

    def _score(self, query: Tensor) -> Tensor:
        if self._fitted_detector is None:
            raise NotFittedError(
                "this PyODScore was loaded from a state_dict, and its detector is still pickled; unpickling "
                "can run any code: call unpickle(trust=True) if you made the state yourself"
            )
        found = np.asarray(self._fitted_detector.decision_function(self._array(query)))
        if not np.isfinite(found).all():
            raise InvalidInputError(
                f"{type(self._fitted_detector).__name__} gave NaN or infinite scores for "
                f"{int((~np.isfinite(found)).sum())} of {len(found)} queries"
            )
        return torch.from_numpy(found).to(query.device, query.dtype)

    def _self_scores(self) -> Tensor | None:
        return None

    def unpickle(self, *, trust: bool = False) -> PyODScore:
        """Make the detector usable after ``load_state_dict``.

        Parameters
        ----------
        trust
            Must be ``True``: a pickle can run any code.

        Returns
        -------
        PyODScore

        Raises
        ------
        InvalidInputError
            Without ``trust=True``.
        """
        if self.pickled is None:
            return self
        if trust is not True:
            raise InvalidInputError(
                "the PyOD detector is pickled, and unpickling can run any code; say trust=True if you made "
                "the file yourself"
            )
        self._fitted_detector = pickle.loads(self.pickled.cpu().numpy().tobytes())  # noqa: S301 - trusted
        self.pickled = None
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        held, self.pickled = self.pickled, self.pickled
        if self._fitted_detector is not None:
            raw = np.frombuffer(pickle.dumps(self._fitted_detector), dtype=np.uint8)
            self.pickled = torch.from_numpy(raw.copy())
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.pickled = held

    def _rebuild(self, keys: list[str]) -> None:
        self.projection = rebuilt_projection(self.pca, keys)
        self._fitted_detector = None

    def _loaded(self, trust: bool) -> None:
        self.unpickle(trust=trust)
