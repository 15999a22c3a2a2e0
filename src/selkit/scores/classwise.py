"""One score for each class: how unlike the references of its predicted class an input is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from selkit.embeddings.extract import extract as extract_features
from selkit.embeddings.predictions import WithPrediction
from selkit.embeddings.sources import run
from selkit.errors import InvalidInputError, NotFittedError, SelkitError
from selkit.scores.base import Stat, UncertaintyScore
from selkit.scores.data import FitData, Given
from selkit.scores.neighbors import CosineScore, EuclideanScore, KNNScore, MahalanobisScore
from selkit.scores.pca import TensorPCA
from selkit.utils.arrays import ArrayLike, check_fraction
from selkit.utils.checks import choice
from selkit.utils.precision import exact_device, full_precision

Aggregate = Literal["max", "mean", "min"]


class ClassWiseScore(UncertaintyScore):
    """A copy of a score for each class, fitted on the references of that class, with a threshold of its own.

    A query is scored against its predicted class, given as ``{"embedding": ..., "prediction": ...}``; with a
    0/1 matrix of predictions against all its predicted classes, of which the worst counts. Without
    predictions, or where none is made, it is scored against the class that it is nearest to. A query is
    selected if the score of its class is at most that class's threshold; with several predicted classes, if
    all are.

    ``y`` holds one class for each reference, or a 0/1 matrix. ``y_cal`` should hold what will be known of a
    query: the model's predictions. With ``model=`` and ``loaders=`` they are.

    Parameters
    ----------
    base
        The score to copy, such as ``EuclideanScore(k=5)``.
    aggregate
        How several predicted classes make one score: ``"max"``, ``"mean"`` or ``"min"``.

    Examples
    --------
    >>> import torch
    >>> X = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    >>> score = ClassWiseScore(EuclideanScore()).fit(X, torch.tensor([0, 0, 1, 1]))
    >>> query = torch.tensor([[0.0], [0.0]])
    >>> score.score({"embedding": query, "prediction": torch.tensor([0, 1])})
    tensor([ 0., 10.])
    """

    buffer_names = ("classes", "multilabel")
    classes: Tensor | None
    multilabel: Tensor | None
    base: UncertaintyScore | None
    aggregate: Aggregate

    def __init__(self, base: UncertaintyScore | None = None, aggregate: Aggregate = "max") -> None:
        super().__init__()
        self.keep(base=base, aggregate=aggregate)
        self.each = nn.ModuleDict()

    def _needs_labels(self) -> bool:
        return True

    def _base(self) -> UncertaintyScore:
        """A fresh copy of the score for one class."""
        if not isinstance(self.base, UncertaintyScore) or self.base.feature != "embedding":
            raise InvalidInputError(f"base must be a score of embeddings; got {self.base!r}")
        return type(self.base)(**self.base.get_params(deep=False))

    # fitting

    def _check_params(self) -> None:
        choice(self.aggregate, "aggregate", ("max", "mean", "min"))
        if self.base is not None or type(self)._base is not ClassWiseScore._base:
            self._base()._check_params()

    def _fit_data(self, data: FitData, q: float | None) -> None:
        if q is not None:
            q = check_fraction(q, "q (the fraction of references to keep)", zero=False)
        if data.X is None or data.y is None:
            raise InvalidInputError(
                f"{type(self).__name__} needs references and their labels: give X= and y="
            )
        self.width = torch.tensor(data.X.shape[1])
        labels = data.y.to(data.X.device)
        self.multilabel = torch.tensor(labels.ndim == 2)
        self.classes = torch.arange(labels.shape[1]) if labels.ndim == 2 else torch.unique(labels).cpu()
        self.each = nn.ModuleDict()
        for name in self.classes.tolist():
            member = labels[:, name] == 1 if labels.ndim == 2 else labels == name
            if not bool(member.any()):
                raise InvalidInputError(f"class {name} has no references; drop its column or give some")
            try:
                self.each[str(name)] = self._base().fit(X=data.X[member], q=q)
            except SelkitError as error:
                raise type(error)(f"class {name}: {error}") from error

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        self._fit_data(FitData(X, y), None)

    def _keep_calibration(self, Y: Tensor, y_cal: Tensor | None) -> None:
        """One calibration score for each sample and class that it counts for."""
        if y_cal is None or self.classes is None:
            raise InvalidInputError("Y= needs labels too: give y_cal=, best the model's predictions on Y")
        self._check_width(Y, "Y")
        with torch.no_grad(), full_precision(Y.device):
            member = self._members(y_cal, Y)
            if y_cal.ndim == 1:
                scores = self._rounded(self._of_one_class(Y, member.int().argmax(1)), Y)
            else:
                scores = self._matrix(Y)[member]
        classes = self.classes.to(Y.device)
        self.calibration_scores = scores
        self.calibration_labels = y_cal if y_cal.ndim == 1 else classes.expand(member.shape)[member]

    # scoring

    def class_scores(self, query: ArrayLike) -> Tensor:
        """Score of each query against each class.

        Parameters
        ----------
        query
            Shape ``(N, D)``.

        Returns
        -------
        Tensor
            Shape ``(N, C)``, in the order of ``classes``.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        """
        self._check_fitted()
        checked = self._check(query, "query")
        self._check_width(checked, "query")
        with torch.no_grad():
            return self._matrix(checked)

    def _matrix(self, query: Tensor) -> Tensor:
        return self._rounded(torch.stack([self._one(name, query) for name in self.each], 1), query)

    def _one(self, name: str, query: Tensor) -> Tensor:
        score = self.each[name]
        if not isinstance(score, UncertaintyScore):
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call fit(...) first")
        return score._score(query)

    def _score(self, query: Tensor) -> Tensor:
        return self._matrix(query).amin(1)

    def _score_labelled(self, query: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return self._score(query)
        member = self._members(labels, query)
        if labels.ndim == 1:
            return self._of_one_class(query, member.int().argmax(1))
        return self._combined(self._matrix(query), member)

    def _combined(self, matrix: Tensor, member: Tensor) -> Tensor:
        """One score for each query from those of its predicted classes, or of the nearest without any."""
        none = torch.full_like(matrix, {"max": -torch.inf, "min": torch.inf, "mean": 0.0}[self.aggregate])
        chosen = torch.where(member, matrix, none)
        if self.aggregate == "mean":
            combined = chosen.sum(1) / member.sum(1).clamp(min=1)
        else:
            combined = chosen.amax(1) if self.aggregate == "max" else chosen.amin(1)
        return torch.where(member.any(1), combined, matrix.amin(1))

    def _of_one_class(self, query: Tensor, place: Tensor) -> Tensor:
        """Scores where each query has one class: only the references of that class are looked at."""
        scores = torch.empty(len(query), dtype=torch.float64, device=exact_device(query))
        for number, name in enumerate(self.each):
            rows = (place == number).nonzero()[:, 0]
            if len(rows):
                scores[rows.to(scores.device)] = self._one(name, query[rows]).to(scores)
        return scores

    def _members(self, labels: Tensor, query: Tensor) -> Tensor:
        """Which classes each query is scored against, ``(N, C)``."""
        if self.classes is None or self.multilabel is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call fit(...) first")
        labels, classes = labels.to(query.device), self.classes.to(query.device)
        if (labels.ndim == 2) != bool(self.multilabel) or (
            labels.ndim == 2 and labels.shape[1] != len(classes)
        ):
            raise InvalidInputError(
                f"predictions of shape {tuple(labels.shape)} do not fit the {len(classes)} classes of fit, "
                f"which had {'a 0/1 matrix' if bool(self.multilabel) else 'one label for each sample'}"
            )
        if labels.ndim == 2:
            return labels == 1
        member = labels[:, None] == classes
        if not bool(member.any(1).all()):
            unknown = torch.unique(labels[~member.any(1)]).tolist()
            raise InvalidInputError(
                f"classes {unknown[:10]} were predicted, but fit had only {classes.tolist()}"
            )
        return member

    # thresholds

    def set_threshold(
        self,
        q: float = 0.99,
        *,
        scores: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        method: str = "linear",
    ) -> Self:
        """Put each class's threshold at the empirical quantile of its calibration scores.

        Parameters
        ----------
        q, scores, method
            As for every score.
        groups
            Class of each of ``scores``.

        Returns
        -------
        Self
        """
        from selkit.calibration import quantile_threshold

        known = self._known_scores(scores, or_own=False)
        each = self._calibration_groups("label" if groups is None else groups, len(known))
        names = self._all_present(each)
        limits = [quantile_threshold(known[each == n], q, method=method) for n in names]
        self._set(limits, names, known, up=True)
        return self

    def calibrate(self, **options: Any) -> Self:
        """As for every score, with a threshold for each class; see :meth:`UncertaintyScore.calibrate`."""
        known = self._known_scores(options.get("scores"), or_own=False)
        groups = "label" if options.get("groups") is None else options["groups"]
        self._all_present(self._calibration_groups(groups, len(known)))
        return super().calibrate(**{**options, "groups": groups})

    def _all_present(self, each: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        names = np.unique(each)
        classes = [] if self.classes is None else self.classes.tolist()
        missing = sorted(set(classes) - set(names.tolist()))
        if missing:
            raise InvalidInputError(
                f"classes {missing[:10]} have no sample in the calibration set, so they can have no threshold"
            )
        return names

    def _decide(
        self, query: Tensor, labels: Tensor | None, groups: ArrayLike | None
    ) -> tuple[Tensor, Tensor]:
        if groups is not None:
            raise InvalidInputError("class-wise scores take predictions with the query, not groups=")
        if labels is not None and labels.ndim == 1:
            score = self._checked_score(query, labels, "query")
            return score, score <= self._threshold_for(score, labels)
        self._check_width(query, "query")
        with torch.no_grad(), full_precision(query.device):
            matrix = self._matrix(query)
        count = matrix.shape[1]
        names = torch.arange(count) if self.classes is None else self.classes
        limits = self._threshold_for(matrix[:1].expand(count, -1)[:, 0], names)
        nearest = nn.functional.one_hot(matrix.argmin(1), count).bool()
        member = nearest if labels is None else self._members(labels, query)
        score = self._rounded(self._combined(matrix, member), query)
        member = torch.where(member.any(1, keepdim=True), member, nearest)
        return score, ((matrix <= limits) | ~member).all(1)

    # predictions from a model

    def _source(self, model: Any) -> WithPrediction:
        columns = len(self.classes) if self.classes is not None and bool(self.multilabel) else None
        return WithPrediction(model, labels=columns, **self._where)

    def extract(self, model: Any, x: Any) -> Any:
        """Embeddings and predictions of one batch, as :meth:`score` takes them."""
        source = self._source(model)
        return source.split(run(source, x, training=getattr(model, "training", False)))

    def _from_loader(self, model: Any, loader: Iterable[Any], options: dict[str, Any]) -> Any:
        source = self._source(model)
        return source.split(extract_features(source, loader, "embedding", **options).values)

    def _from_model(self, given: Given, model: Any, loaders: Any, options: dict[str, Any]) -> Given:
        if not isinstance(loaders, Mapping) or "train" not in loaders:
            raise InvalidInputError("class-wise scores need loaders={'train': ..., 'val': ...}")
        train = {name: loader for name, loader in loaders.items() if name != "val"}
        found = super()._from_model(given, model, train, options)
        if "val" not in loaders:
            return found
        labels = torch.as_tensor(found.y)
        source = WithPrediction(
            model,
            labels=labels.shape[1] if labels.ndim == 2 else None,
            layer=options["layer"],
            pool=options["pool"],
        )
        rest = {name: options[name] for name in ("input_key", "cache")}
        parts = source.split(extract_features(source, loaders["val"], "embedding", **rest).values)
        y_cal = parts["prediction"] if given.y_cal is None else given.y_cal
        return Given(found.X, found.y, parts["embedding"], y_cal)

    def _rebuild(self, keys: list[str]) -> None:
        names = list(dict.fromkeys(key.split(".")[1] for key in keys if key.startswith("each.")))
        self.each = nn.ModuleDict({name: self._base() for name in names})


class KNNClassWiseScore(ClassWiseScore):
    """Base of the class-wise neighbour scores.

    Parameters
    ----------
    k, stat, pca
        As in :class:`EuclideanScore`; principal components are those of each class.
    aggregate
        As in :class:`ClassWiseScore`.
    """

    kind: ClassVar[type[KNNScore]]
    k: int
    stat: Stat
    pca: TensorPCA | float | None

    def __init__(
        self,
        k: int = 1,
        stat: Stat = "max",
        pca: TensorPCA | float | None = None,
        aggregate: Aggregate = "max",
    ) -> None:
        super().__init__(None, aggregate)
        self.keep(k=k, stat=stat, pca=pca)

    def _base(self) -> UncertaintyScore:
        return self.kind(self.k, self.stat, self.pca)


class EuclideanClassWiseScore(KNNClassWiseScore):
    """:class:`EuclideanScore` for each class; see :class:`ClassWiseScore`.

    Parameters
    ----------
    k, stat, pca
        As in :class:`EuclideanScore`; principal components are those of each class.
    aggregate
        As in :class:`ClassWiseScore`.
    """

    kind = EuclideanScore


class CosineClassWiseScore(KNNClassWiseScore):
    """:class:`CosineScore` for each class; see :class:`ClassWiseScore`.

    Parameters
    ----------
    k, stat, pca, aggregate
        As in :class:`EuclideanClassWiseScore`.
    """

    kind = CosineScore


class MahalanobisClassWiseScore(KNNClassWiseScore):
    """:class:`MahalanobisScore` for each class; see :class:`ClassWiseScore`.

    Parameters
    ----------
    k, stat, pca, aggregate
        As in :class:`EuclideanClassWiseScore`.
    """

    kind = MahalanobisScore
