"""Any detector of PyOD as a score."""

from __future__ import annotations

import pickle
import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError, NotFiniteError, NotFittedError
from selkit.scores.base import UncertaintyScore
from selkit.scores.pca import TensorPCA, check_pca, fitted_projection, rebuilt_projection

Array: TypeAlias = np.ndarray[Any, Any]

BACKGROUND = 128  # references beside a query, where a detector looks at the whole batch
PROBE = 8  # references on which that is found out
SAME = 1e-3  # of the scores' spread: what rounding in float32 may do, and a rank among 8 does not


class PyODScore(UncertaintyScore):
    """The ``decision_function`` of a PyOD detector.

    A fitted detector is a Python object: it is pickled into ``save`` files and into the ``state_dict``.
    Unpickling can run any code, so it needs consent: ``PyODScore.load(path, trust=True)``, or
    :meth:`unpickle` after ``load_state_dict``.

    Some detectors (ECOD, COPOD, COF, CD, DIF, ...) score a query by what else is in the same call, and some
    (VAE, ALAD) draw random numbers for it. A threshold would then promise nothing for single inputs, so
    ``fit`` looks whether the score of a reference changes with its batch or from call to call. If it does,
    every query is scored in a call of its own: among 128 references that stay the same (ECOD and COPOD bring
    all references along themselves), and with the same seed. That is slower, by one call for each query, and
    gives a query one score, whatever batch it is in.

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
    buffer_names = ("pickled", "background")
    pickled: Tensor | None
    background: Tensor | None  # references beside each query, (R, D), maybe none; None: a batch in one call
    detector: Any
    pca: TensorPCA | float | None

    def __init__(self, detector: Any = None, pca: TensorPCA | float | None = None) -> None:
        super().__init__()
        self.keep(detector=detector, pca=pca)
        self.projection: TensorPCA | None = None
        self._fitted_detector: Any = None

    def _check_params(self) -> None:
        if self.detector is not None and not all(
            callable(getattr(self.detector, name, None)) for name in ("fit", "decision_function")
        ):
            raise InvalidTypeError(
                "detector must have fit(X) and decision_function(X), like those of pyod.models; "
                f"got {type(self.detector).__name__}"
            )
        if self.pca is not None:
            check_pca(self.pca)

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        from sklearn.base import clone

        if self.detector is None:
            raise InvalidTypeError("detector is missing: give one of pyod.models, PyODScore(KNN())")
        self.projection = None if self.pca is None else fitted_projection(self.pca, X)
        detector, rows = clone(self.detector), self._array(X)
        with torch.inference_mode(False), torch.enable_grad():  # deep ones learn by gradients
            detector.fit(rows)
        self._fitted_detector, self.background = detector, None
        if _depends_on_batch(detector, rows):
            count = 0 if hasattr(detector, "X_train") else min(len(rows), BACKGROUND)
            place = np.linspace(0, len(rows) - 1, count).round().astype(int)
            self.background = torch.from_numpy(rows[place]).to(X.device)

    def _array(self, X: Tensor) -> Array:
        inside = X if self.projection is None else self.projection.transform(X)
        array: Array = inside.cpu().numpy()
        return array

    def _score(self, query: Tensor) -> Tensor:
        if self._fitted_detector is None:
            raise NotFittedError(
                "this PyODScore was loaded from a state_dict, and its detector is still pickled; unpickling "
                "can run any code: call unpickle(trust=True) if you made the state yourself"
            )
        detector, rows = self._fitted_detector, self._array(query)
        if self.background is None:
            found = _decision(detector, rows)
        else:
            beside = self.background.cpu().numpy().astype(rows.dtype)
            found = np.concatenate([_alone(detector, row, beside) for row in rows[:, None]])
        if not np.isfinite(found).all():
            raise NotFiniteError(
                f"{type(self._fitted_detector).__name__} gave NaN or infinite scores for "
                f"{int((~np.isfinite(found)).sum())} of {len(found)} queries"
            )
        return torch.from_numpy(found)

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


def _decision(detector: Any, rows: Array) -> Array:
    found: Array = np.asarray(detector.decision_function(rows), dtype=np.float64).ravel()
    if len(found) != len(rows):
        raise InvalidInputError(f"{type(detector).__name__} gave {len(found)} scores for {len(rows)} queries")
    return found


def _alone(detector: Any, row: Array, beside: Array) -> Array:
    """The score of one query, ``(1, D)``, after the same references and with the same random numbers."""
    state = np.random.get_state()  # noqa: NPY002 - the generator that detectors draw from
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            return _decision(detector, np.concatenate([beside, row]))[-1:]
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _depends_on_batch(detector: Any, rows: Array) -> bool:
    """Whether a score changes with what else is in the call, or from call to call."""
    probe = rows[np.linspace(0, len(rows) - 1, PROBE).round().astype(int)]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of so few rows
        return _differs(detector, probe)


def _differs(detector: Any, probe: Array) -> bool:
    try:
        together = _decision(detector, probe)
        others = [_decision(detector, probe), *(_decision(detector, probe[:n]) for n in (1, PROBE // 2))]
    except (ValueError, IndexError, RuntimeError, FloatingPointError, ZeroDivisionError):
        return True  # it does not work on so few
    spread = float(np.std(getattr(detector, "decision_scores_", together)))
    limit = SAME * max(spread, float(np.abs(together).max()) * 1e-3)
    return not all(bool((np.abs(found - together[: len(found)]) <= limit).all()) for found in others)
