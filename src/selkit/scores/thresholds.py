"""From calibration scores to decisions: what every score can do once it scores."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selkit.calibration import conformal_pvalues, conformal_threshold, quantile_threshold, risk_threshold
from selkit.calibration.conformal import benjamini_hochberg
from selkit.calibration.risk import Method
from selkit.errors import InvalidInputError, InvalidTypeError, NoGuaranteeError, NotFittedError
from selkit.scores.state import Stateful
from selkit.utils.arrays import ArrayLike, as_tensor, as_vector, check_fraction
from selkit.utils.checks import choice
from selkit.utils.precision import exact_device

if TYPE_CHECKING:
    from selkit.scores.base import UncertaintyScore

Vector = npt.NDArray[np.float64]
SAME_32 = 2.0**-22  # two units in the last place of float32: computed in float64, scores differ by one
SAME_64 = 2.0**-36  # float64 data: far above the rounding of a score, far below what tells samples apart

Otherwise = Literal["raise", "accept_all", "accept_nothing"]


class Thresholds(Stateful, ABC):
    """Thresholds with and without a guarantee, and p-values, from the calibration scores of a score."""

    buffer_names: ClassVar[tuple[str, ...]] = (
        "threshold",
        "threshold_groups",
        "calibration_scores",
        "calibration_labels",
        "promise",
        "anchors",
    )
    threshold: Tensor | None
    threshold_groups: Tensor | None
    calibration_scores: Tensor | None
    calibration_labels: Tensor | None
    precision: Tensor | None
    _settling: tuple[Any, ...] | None
    anchors: Tensor | None  # the calibration scores on both sides of each threshold
    promise: Tensor | None  # how the threshold was set, as bytes of JSON: it is saved like the rest

    @property
    def guarantee(self) -> dict[str, Any] | None:
        """What the threshold promises, ``"text"`` in words and the rest as numbers; ``None`` if unknown."""
        if self.threshold is None or self.promise is None:
            return None
        found: dict[str, Any] = json.loads(self.promise.cpu().numpy().tobytes())
        return found

    def set_threshold(
        self, q: float = 0.99, *, scores: ArrayLike | None = None, method: str = "linear"
    ) -> Self:
        """Put the threshold at the empirical quantile of the calibration scores.

        About the fraction ``q`` of new samples of the same kind is then selected; :meth:`calibrate` gives
        a guarantee.

        Parameters
        ----------
        q
            Between 0 and 1, both included.
        scores
            Calibration scores to use instead of the stored ones. Without either, neighbour scores use
            those of the references against the others (leave one out).
        method
            As in :func:`numpy.quantile`.

        Returns
        -------
        Self

        Raises
        ------
        NotFittedError
            If there are no calibration scores.
        InvalidInputError
            For ``q`` outside [0, 1] or scores with NaN.
        """
        known = self._known_scores(scores, or_own=True)
        self._set([quantile_threshold(known, q, method=method)], None, known, up=True)
        text = f"nothing: it is the {q:g} quantile of {len(known)} calibration scores"
        self._remember(text, quantile=float(q))
        return self

    def calibrate(
        self,
        *,
        coverage: float | None = None,
        risk: float | None = None,
        confidence: float = 0.95,
        losses: ArrayLike | None = None,
        scores: ArrayLike | None = None,
        groups: ArrayLike | Literal["label"] | None = None,
        method: Method = "ltt",
        otherwise: Otherwise = "raise",
    ) -> Self:
        """Set a threshold with a finite-sample guarantee; see :mod:`selkit.calibration` for what is promised.

        Parameters
        ----------
        coverage
            Accept a new sample of the calibration set's distribution with at least this probability
            (:func:`selkit.calibration.conformal_threshold`).
        risk, confidence, losses, method
            Or: keep the mean loss on accepted samples at most ``risk``, with this confidence
            (:func:`selkit.calibration.risk_threshold`); ``losses`` in [0, 1] are those of the model on the
            calibration samples, such as ``predicted != true``.
        scores
            Calibration scores to use instead of those of the calibration set given to ``fit``.
        groups
            One threshold for each group: the group of each calibration sample, whole numbers, or ``"label"``
            for the labels given to ``fit``. The promise holds within each group, if the group of a new sample
            is found in the same way: by a property of the input or by the prediction, not by the truth. A
            confidence is that of each group on its own.
        otherwise
            Where nothing can be promised: ``"raise"``, ``"accept_all"`` (for a coverage) or
            ``"accept_nothing"`` (for a risk).

        Returns
        -------
        Self

        Raises
        ------
        NoGuaranteeError
            If no threshold can keep the promise with these samples.
        NotFittedError
            If there is no calibration set.
        InvalidInputError
            For both or none of ``coverage`` and ``risk``, or losses or groups of another length.
        """
        if (coverage is None) == (risk is None):
            raise InvalidInputError("give either coverage= or risk= (with losses=)")
        check_fraction(confidence, "confidence", zero=False, one=False)
        known = self._known_scores(scores, or_own=False)
        if coverage is not None:
            choice(method, "method", get_args(Method))
            rule = _coverage_rule(known, coverage, losses, otherwise)
        else:
            rule = _risk_rule(known, losses, otherwise, risk=risk, confidence=confidence, method=method)
        if groups is None:
            self._set([rule(np.ones(len(known), dtype=bool))], None, known, up=risk is None)
            self._remember_rule(len(known), "", coverage=coverage, risk=risk, confidence=confidence)
            return self
        each = self._calibration_groups(groups, len(known))
        names = np.unique(each)
        found, failed = [], []
        for name in names:
            try:
                found.append(rule(each == name))
            except NoGuaranteeError as error:
                failed.append(f"group {name}: {error}")
        if failed:
            raise NoGuaranteeError("no threshold for some groups:\n" + "\n".join(failed))
        self._set(found, names, known, up=risk is None)
        inside = f", within each of {len(names)} groups"
        self._remember_rule(len(known), inside, coverage=coverage, risk=risk, confidence=confidence)
        return self

    def pvalues(self: UncertaintyScore, query: Any) -> Tensor:  # type: ignore[misc]
        """Conformal p-values of "this query is from the calibration set's distribution".

        Parameters
        ----------
        query
            As in ``score``.

        Returns
        -------
        Tensor
            Shape ``(N,)``, float64; see :func:`selkit.calibration.conformal_pvalues`.

        Raises
        ------
        NotFittedError
            Without a calibration set.
        """
        score = self.score(query)
        found = conformal_pvalues(self._known_scores(None, or_own=False), score)
        return torch.from_numpy(found).to(score.device)

    def flag(self: UncertaintyScore, query: Any, *, fdr: float = 0.1) -> dict[str, Tensor]:  # type: ignore[misc]
        """Which queries of a batch are not from the training distribution, with a bound on false alarms.

        Of those that are flagged, at most the fraction ``fdr`` is false on average, where the queries that
        are from the calibration set's distribution are independent (Bates et al. 2023). The larger the
        batch and the calibration set, the better outliers are found: with M calibration samples no p-value is
        below ``1 / (M + 1)``.

        Parameters
        ----------
        query
            As in ``score``.
        fdr
            In (0, 1).

        Returns
        -------
        dict
            ``"score"``, ``"pvalue"`` and the boolean ``"flagged"``, shape ``(N,)`` each.
        """
        score = self.score(query)
        pvalue = conformal_pvalues(self._known_scores(None, or_own=False), score)
        flagged = torch.from_numpy(benjamini_hochberg(pvalue, fdr))
        return {
            "score": score,
            "pvalue": torch.from_numpy(pvalue).to(score.device),
            "flagged": flagged.to(score.device),
        }

    def plot(self, query_scores: ArrayLike | None = None, bins: int = 100, ax: Any = None) -> Any:
        """Draw the densities of calibration and query scores; see :func:`selkit.scores.plot.plot_scores`."""
        from selkit.scores.plot import plot_scores

        return plot_scores(self, query_scores, bins, ax)

    def _calibration_groups(self, groups: Any, count: int) -> npt.NDArray[np.int64]:
        if isinstance(groups, str):
            if groups != "label":
                raise InvalidInputError(f"groups must be an array or 'label'; got {groups!r}")
            if self.calibration_labels is None:
                raise InvalidInputError(
                    "groups='label' needs the labels of the calibration set: fit with y_cal="
                )
            groups = self.calibration_labels
        return _groups(groups, count)

    def _known_scores(self, scores: ArrayLike | None, *, or_own: bool) -> Vector:
        """Calibration scores: those given, those of the calibration set, or (where allowed) leave-one-out."""
        if scores is not None:
            return as_vector(scores, "scores", finite=False)
        self._check_fitted()
        found = self.calibration_scores
        if found is None and or_own:
            found = self._self_scores()
        if found is None:
            raise NotFittedError(
                f"{type(self).__name__} has no calibration scores: fit with Y= "
                "(or loaders={'train': ..., 'val': ...}), or give scores="
            )
        return as_vector(found, "scores", finite=False)

    def _set(
        self, values: Sequence[float], groups: npt.NDArray[np.int64] | None, known: Vector, *, up: bool
    ) -> None:
        self.promise = None
        found = self._as_threshold(values, up=up)
        self.threshold = found[0] if groups is None else found
        self.threshold_groups = None if groups is None else torch.from_numpy(groups).to(found.device)
        ordered = np.unique(known)
        place = np.searchsorted(ordered, np.asarray(values), side="right")
        near = ordered[np.unique(np.clip(np.concatenate([place - 1, place]), 0, len(ordered) - 1))]
        self.anchors = torch.from_numpy(near).to(exact_device(found))

    def _settled(self, score: Tensor) -> Tensor:
        """Scores in float64, each that is a calibration score but for rounding put exactly on it.

        The last digits of a score depend on the batch that it is computed in, on the number of threads and on
        the processor; decisions about calibration samples, of which one is the threshold, must not.
        """
        points, reach = self._points()
        if points is None:
            return score
        points = points.to(score.device)
        flat = score.flatten().contiguous()
        right = torch.searchsorted(points, flat).clamp(max=len(points) - 1)
        left = (right - 1).clamp(min=0)
        nearer = (flat - points[left]).abs() < (points[right] - flat).abs()
        point = torch.where(nearer, points[left], points[right])
        close = (flat - point).abs() <= reach * point.abs().clamp(min=float(points.abs().median()))
        return torch.where(close, point, flat).view(score.shape)

    def rounding(self, value: float) -> float:
        """Up to which a score is taken for the calibration score ``value``, as on the threshold.

        Parameters
        ----------
        value
            A calibration score, such as the threshold.
        """
        points, reach = self._points()
        typical = 0.0 if points is None else float(points.abs().median())
        return reach * max(abs(value), typical)

    def _points(self) -> tuple[Tensor | None, float]:
        """Calibration scores in order, and how near to one a score is taken for it, relative to its size."""
        held = (self.calibration_scores, self.anchors)
        key = tuple((id(t), None if t is None or t.is_inference() else t._version) for t in held)
        if self._settling is None or self._settling[0] != key:
            known = [t.detach().to(exact_device(t)).double().flatten() for t in held if t is not None]
            known = [t[torch.isfinite(t)] for t in known]
            points = torch.cat([t.to(known[0].device) for t in known]).unique() if known else None  # type: ignore[no-untyped-call]
            points = None if points is None or not len(points) else points
            # what is told apart by its address is kept alive with it
            self._settling = (key, held, points)
        stored = (self.calibration_scores, self.threshold)
        coarse = any(t is not None and t.dtype is torch.float32 for t in stored)
        return self._settling[2], SAME_32 if coarse else SAME_64

    def _remember(self, text: str, **numbers: Any) -> None:
        content = json.dumps({"text": text, **numbers}).encode()
        device = None if self.threshold is None else self.threshold.device
        self.promise = torch.tensor(list(content), dtype=torch.uint8, device=device)

    def _remember_rule(
        self, count: int, inside: str, *, coverage: float | None, risk: float | None, confidence: float
    ) -> None:
        if coverage is not None:
            self._remember(
                "selects a new sample of the calibration set's distribution with probability at least "
                f"{coverage:g}{inside} (split conformal, {count} calibration scores)",
                coverage=coverage,
            )
        else:
            self._remember(
                f"keeps the mean loss on selected samples at most {risk:g}{inside}, with confidence "
                f"{confidence:g} ({count} calibration samples)",
                risk=risk,
                confidence=confidence,
            )

    def _as_threshold(self, values: Sequence[float], *, up: bool) -> Tensor:
        """Thresholds in the precision of the scores, rounded to the side on which the promise holds."""
        own = self.precision
        device = torch.device("cpu") if own is None else own.device
        exact = torch.tensor(values, dtype=torch.float64)
        if own is not None and own.dtype is torch.float64:
            return exact.to(device)
        rounded = exact.float()
        wrong = rounded.double() < exact if up else rounded.double() > exact
        side = torch.full_like(rounded, torch.inf if up else -torch.inf)
        return torch.where(wrong, torch.nextafter(rounded, side), rounded).to(device)

    def _threshold_for(self, score: Tensor, groups: ArrayLike | None) -> Tensor:
        """The threshold that each score is compared with."""
        threshold, names = self._check_calibrated().to(score.device), self.threshold_groups
        if names is None:
            if groups is not None:
                raise InvalidInputError("groups= were given, but there is one threshold for all")
            return threshold
        if groups is None:
            raise InvalidInputError(
                f"{type(self).__name__} has one threshold for each of {len(names)} groups: "
                "give the group of each query, groups="
            )
        asked = torch.from_numpy(_groups(groups, len(score))).to(score.device)
        names = names.to(score.device)
        place = torch.searchsorted(names, asked).clamp(max=len(names) - 1)
        if not bool((names[place] == asked).all()):
            unknown = sorted(set(asked.tolist()) - set(names.tolist()))
            raise InvalidInputError(
                f"groups {unknown[:5]} have no threshold; those that have: {names.tolist()}"
            )
        return threshold[place]

    def _check_calibrated(self) -> Tensor:
        if self.threshold is None:
            raise NotFittedError(
                f"{type(self).__name__} has no threshold yet: call set_threshold(q=...) or calibrate(...)"
            )
        return self.threshold

    @abstractmethod
    def _check_fitted(self) -> None:
        """Raise if it cannot score yet."""

    def _self_scores(self) -> Tensor | None:
        """Scores of the references as if each had not been among them, where that is possible."""
        return None


Rule = Callable[[npt.NDArray[np.bool_]], float]  # the threshold for some of the calibration samples


def _coverage_rule(known: Vector, coverage: float, losses: object, otherwise: Otherwise) -> Rule:
    if losses is not None:
        raise InvalidInputError("losses= belong to risk=, not to coverage=")
    if otherwise == "accept_nothing":
        raise InvalidInputError("otherwise='accept_nothing' belongs to risk=; use 'accept_all'")
    return lambda members: conformal_threshold(known[members], coverage, otherwise=otherwise)


def _risk_rule(known: Vector, losses: ArrayLike | None, otherwise: Otherwise, **options: Any) -> Rule:
    if losses is None:
        raise InvalidInputError("risk= needs losses=: the loss of the model on each calibration sample")
    if otherwise == "accept_all":
        raise InvalidInputError("otherwise='accept_all' promises nothing for risk=; use 'accept_nothing'")
    costs = as_vector(losses, "losses")
    if len(costs) != len(known):
        raise InvalidInputError(
            f"losses must be one for each of the {len(known)} calibration scores; got {len(costs)}"
        )
    return lambda members: risk_threshold(known[members], costs[members], otherwise=otherwise, **options)


def _groups(values: Any, count: int) -> npt.NDArray[np.int64]:
    tensor = as_tensor(values, "groups")
    if tensor.ndim != 1 or len(tensor) != count:
        raise InvalidInputError(f"groups must have shape ({count},); got {tuple(tensor.shape)}")
    if tensor.is_floating_point() or tensor.is_complex():
        raise InvalidTypeError(f"groups must be whole numbers; got {tensor.dtype}")
    found: npt.NDArray[np.int64] = tensor.cpu().numpy().astype(np.int64)
    return found
