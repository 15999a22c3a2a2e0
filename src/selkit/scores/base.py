"""What every score does: fit on references, get a threshold from calibration data, score and select."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from selkit.embeddings.batches import Key
from selkit.embeddings.extract import extract as extract_features
from selkit.embeddings.lightning import loaders_of
from selkit.embeddings.sources import Pool, Want, run, source_of
from selkit.errors import InvalidInputError, InvalidTypeError, NotFiniteError, NotFittedError
from selkit.scores.data import (
    AsGiven,
    FitData,
    Given,
    checked,
    from_loaders,
    only_one,
    unpacked,
    without_ignored,
)
from selkit.scores.estimator import OutlierEstimator, called_by_sklearn
from selkit.scores.thresholds import Thresholds
from selkit.utils.arrays import ArrayLike, as_labels, as_matrix, check_fraction
from selkit.utils.checks import choice, text
from selkit.utils.precision import exact_device, full_precision

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule


class UncertaintyScore(OutlierEstimator, Thresholds):
    """Base of all scores: a higher score is less like the training data.

    A score is a ``torch.nn.Module`` whose state is in buffers: it moves with ``to(device)``, is saved in a
    checkpoint of what contains it, and computes without gradients. Subclasses implement ``_fit`` and
    ``_score``.

    Attributes
    ----------
    threshold
        ``None`` before :meth:`set_threshold` or :meth:`calibrate`; then a number, or one for each group.
    calibration_scores
        Scores of the calibration set, ``(M,)``, or ``None``.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ("width", "precision")
    feature: ClassVar[Want] = "embedding"
    requires_fit: ClassVar[bool] = True

    width: Tensor | None
    precision: Tensor | None  # empty, of the dtype of the data given to fit, which scores have too

    def __init__(self) -> None:
        super().__init__()
        self._where: dict[str, Any] = {"layer": None, "pool": None}
        self._settling = None
        self._past_hooks = False  # fitted on loaders that a DataModule's hooks have not seen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_settling": None}  # it is told by addresses, which a copy does not have

    # what a subclass fills in

    @abstractmethod
    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        """Learn from checked references ``(N, D)`` and labels."""

    @abstractmethod
    def _score(self, query: Tensor) -> Tensor:
        """Scores ``(N,)`` of checked queries, best in float64; they are rounded afterwards."""

    def _needs_labels(self) -> bool:
        """Whether ``fit`` takes labels, and from a loader if they are not given."""
        return False

    def _check(self, values: object, name: str) -> Tensor:
        """Queries or references as a tensor, or an error that says what is wrong."""
        return as_matrix(values, name)

    def _check_references(self, values: object) -> Tensor:
        return self._check(values, "X")

    def _from_model(self, given: Given, model: Any, loaders: Any, options: dict[str, Any]) -> Given:
        return from_loaders(given, model, loaders, self.feature, labels=self._needs_labels(), options=options)

    # public

    @property
    def is_fitted(self) -> bool:
        """Whether it can score."""
        return not self.requires_fit or self.width is not None

    @property
    def is_calibrated(self) -> bool:
        """Whether it can select."""
        return self.threshold is not None

    def fit(
        self,
        X: ArrayLike | Mapping[str, ArrayLike] | None = None,
        y: ArrayLike | None = None,
        *,
        Y: ArrayLike | Mapping[str, ArrayLike] | None = None,
        y_cal: ArrayLike | None = None,
        ref: ArrayLike | Mapping[str, ArrayLike] | None = None,
        cal: ArrayLike | Mapping[str, ArrayLike] | None = None,
        labels: ArrayLike | None = None,
        model: Any = None,
        loaders: Mapping[str, Iterable[Any]] | LightningDataModule | None = None,
        loader: Iterable[Any] | None = None,
        layer: str | None = None,
        pool: Pool = None,
        input_key: Key = None,
        target_key: Key = None,
        cache: str | Path | None = None,
        q: float | None = None,
        ignore_index: int | None = -100,
    ) -> Self:
        """Fit on references, and score a calibration set if there is one.

        Either ``X`` (and ``Y``) with precomputed embeddings or logits, or ``model`` and ``loaders``.

        Parameters
        ----------
        X, ref
            References, shape ``(N, D)``, a tensor or an array; two names for one argument. Half precision
            and integers are computed in float32. A mapping may hold ``"embedding"`` or ``"logits"``, and
            ``"label"``.
        y, labels
            Labels of the references, where the score uses them: ``(N,)``, or a 0/1 matrix ``(N, C)``.
        Y, cal
            Calibration set, shape ``(M, D)``: data that the score was not fitted on.
        y_cal
            Labels of the calibration set.
        model
            A torch or Lightning module with ``embed(x)`` (``logits(x)`` for scores of logits), or an ONNX
            model; see :func:`selkit.embeddings.extract`.
        loaders
            ``{"train": ..., "val": ...}``; ``"val"`` is the calibration set and may be missing. Or a
            ``LightningDataModule``, whose ``train_dataloader`` and ``val_dataloader`` are taken, and whose
            hooks of batch transfer are called as in a Trainer; loaders on their own do not know them.
        loader
            A single loader, the same as ``loaders={"train": loader}``: of references, or for a score of
            logits, which keeps none, of the calibration set. Without ``model=`` its batches are embeddings or
            logits already.
        layer, pool, input_key, target_key, cache
            As in :func:`selkit.embeddings.extract`; ``layer`` and ``pool`` are remembered for queries.
        q
            Fit twice: the second time only on the fraction ``q`` of the references that the first fit
            finds least unusual.
        ignore_index
            A label that means that there is none, by default that of torch's losses: scores that learn from
            labels leave out samples that have it. ``None`` for no such label.

        Returns
        -------
        Self
            Without a threshold, even if it had one before.

        Raises
        ------
        InvalidInputError
            For NaN, infinite or empty data, another width in ``Y`` than in ``X``, or both ways at once.
        """
        given = Given(only_one(X=X, ref=ref), only_one(y=y, labels=labels), only_one(Y=Y, cal=cal), y_cal)
        if loader is not None:
            if loaders is not None:
                raise InvalidInputError("give loader= or loaders=, not both")
            loaders, model = {"train": loader}, AsGiven() if model is None else model
        self._past_hooks = model is not None and isinstance(loaders, Mapping)
        loaders = loaders_of(loaders)
        if model is not None or loaders is not None:
            options = {"input_key": input_key, "target_key": target_key, "cache": cache}
            given = self._from_model(given, model, loaders, {"layer": layer, "pool": pool, **options})
        self._check_params()
        data = checked(given, self.feature, self._check_references, self._check)
        data = without_ignored(data, ignore_index) if self._needs_labels() else data
        self._forget()
        self._where = {"layer": layer, "pool": pool}
        some = data.X if isinstance(data.X, Tensor) else data.Y
        self._keep_precision(data)
        with torch.no_grad(), full_precision(torch.device("cpu") if some is None else some.device):
            self._fit_data(data, q)
            if data.Y is not None:
                self._keep_calibration(data.Y, data.y_cal)
        self._warn_of_references(data)
        return self

    def score(
        self,
        query: ArrayLike | Mapping[str, ArrayLike] | None = None,
        y: Any = None,
        *,
        model: Any = None,
        loader: Iterable[Any] | None = None,
        input_key: Key = None,
        cache: str | Path | None = None,
    ) -> Tensor:
        """How unlike the references each query is.

        Called by a scikit-learn search or ``cross_val_score`` without ``scoring=``, it is one number instead,
        as with scikit-learn's density estimators: the mean of ``score_samples``. That compares like with like
        only where scores have one scale; to choose ``k`` give ``scoring=``.

        Parameters
        ----------
        query
            Embeddings or logits, as in :meth:`fit`.
        y
            For scikit-learn's searches, which give labels here; not used.
        model, loader
            Instead of ``query``: run the model over the loader; ``layer`` and ``pool`` are those of
            :meth:`fit`.
        input_key, cache
            As in :func:`selkit.embeddings.extract`.

        Returns
        -------
        Tensor
            Shape ``(N,)``, on the device of the query.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InvalidInputError
            For NaN, infinity, an empty query or another width than that of the references.
        """
        self._check_fitted()
        features, labels = self._query(query, model, loader, {"input_key": input_key, "cache": cache})
        found = self._checked_score(features, labels, "query")
        if called_by_sklearn():
            return -found.double().cpu().mean()
        if y is not None:
            raise InvalidInputError(
                "score takes no y: a query with predictions is {'embedding': ..., 'prediction': ...}"
            )
        return found

    def select(
        self,
        query: ArrayLike | Mapping[str, ArrayLike] | None = None,
        *,
        model: Any = None,
        loader: Iterable[Any] | None = None,
        input_key: Key = None,
        cache: str | Path | None = None,
        groups: ArrayLike | None = None,
    ) -> dict[str, Tensor]:
        """Which queries are close enough to the training data to be predicted.

        Parameters
        ----------
        query, model, loader, input_key, cache
            As in :meth:`score`.
        groups
            Group of each query, where :meth:`calibrate` set one threshold for each group.

        Returns
        -------
        dict
            ``"score"``, shape ``(N,)``, and ``"selected"``, boolean: ``score <= threshold``.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`, or without a threshold.
        """
        self._check_fitted()
        self._check_calibrated()
        features, labels = self._query(query, model, loader, {"input_key": input_key, "cache": cache})
        score, selected = self._decide(features, labels, groups)
        return {"score": score, "selected": selected}

    def extract(self, model: Any, x: Any) -> Tensor:
        """What :meth:`score` takes, from one batch of a model's inputs.

        Parameters
        ----------
        model
            As in :meth:`fit`.
        x
            Inputs of the model.

        Returns
        -------
        Tensor
            Embeddings or logits, one row for each sample, on the model's device.

        Raises
        ------
        InvalidInputError
            If the model does not give one row for each sample.
        """
        return run(
            source_of(model, self.feature, **self._where), x, training=getattr(model, "training", False)
        )

    def forward(self, query: Tensor) -> Tensor:
        """The same as :meth:`score`."""
        return self.score(query)

    # shared work

    def _forget(self) -> None:
        for name in UncertaintyScore._all_buffer_names():
            setattr(self, name, None)

    def _fit_data(self, data: FitData, q: float | None) -> None:
        X = data.X
        if X is None:
            raise InvalidInputError(
                f"{type(self).__name__} needs references: give X=, or model= and loaders="
            )
        if self._needs_labels() and data.y is None:
            raise InvalidInputError(f"{type(self).__name__} needs the labels of the references: give y=")
        self._fit(X, data.y)
        self.width = torch.tensor(X.shape[1])
        if q is not None:
            keep = self._inliers(X, q)
            y = None if data.y is None else data.y[keep.to(data.y.device)]
            self._fit(X[keep.to(X.device)], y)

    def _inliers(self, X: Tensor, q: float) -> Tensor:
        q = check_fraction(q, "q (the fraction of references to keep)", zero=False)
        scores = self._self_scores()
        if scores is None:
            scores = self._checked_score(X, None, "X")
        return scores <= float(np.quantile(scores.double().cpu().numpy(), q))

    def _checked_score(self, query: Tensor, labels: Tensor | None, name: str) -> Tensor:
        """Scores of queries of the right width, without gradients or reduced precision."""
        self._check_width(query, name)
        with torch.no_grad(), full_precision(query.device), full_precision(self._device(query)):
            return self._rounded(self._score_labelled(query, labels), query)

    def _rounded(self, score: Tensor, query: Tensor) -> Tensor:
        """Scores in the precision of the data, on the query's device; those of calibration samples exactly.

        Raises
        ------
        NotFiniteError
            For scores that overflow.
        """
        dtype = query.dtype if self.precision is None else self.precision.dtype
        exact = score.to(exact_device(score)).double()
        rounded = self._settled(exact).to(dtype).to(query.device)
        if not bool(torch.isfinite(rounded).all()):
            bad = int((~torch.isfinite(rounded)).sum())
            raise NotFiniteError(
                f"{bad} of {rounded.numel()} scores overflow {dtype}: the query holds numbers that are too "
                "large for this score; rescale the data, or remove these rows"
            )
        return rounded

    def _keep_precision(self, data: FitData) -> None:
        rows: Any = data.Y if data.X is None else data.X
        if rows is not None:
            like = rows if isinstance(rows, Tensor) else rows.block(0, 1)
            self.precision = torch.zeros(0, dtype=like.dtype, device=like.device)

    def _warn_of_references(self, data: FitData) -> None:
        """Say so where the calibration set is what the score was fitted on."""
        X, Y = data.X, data.Y
        if not self.requires_fit or self.feature != "embedding" or Y is None or not isinstance(X, Tensor):
            return
        if X is Y or (X.shape == Y.shape and torch.equal(X, Y.to(X))):
            warnings.warn(
                f"the calibration set of {type(self).__name__} equals its references, which score lower "
                "than new samples do: a threshold from it accepts too little, often nothing. Hold samples "
                "back for Y=, or use selkit.calibration.cross_val_scores",
                stacklevel=3,
            )

    def _score_labelled(self, query: Tensor, labels: Tensor | None) -> Tensor:
        """Scores of queries whose predicted labels may be known; most scores need none."""
        return self._score(query)

    def _keep_calibration(self, Y: Tensor, y_cal: Tensor | None) -> None:
        self.calibration_scores = self._checked_score(Y, y_cal, "Y")
        self.calibration_labels = y_cal

    def _decide(
        self, query: Tensor, labels: Tensor | None, groups: ArrayLike | None
    ) -> tuple[Tensor, Tensor]:
        """Scores, and which of them are selected."""
        score = self._checked_score(query, labels, "query")
        return score, score <= self._threshold_for(score, groups)

    def _device(self, query: Tensor) -> torch.device:
        return next((buffer.device for buffer in self.buffers()), query.device)

    def _check_width(self, query: Tensor, name: str) -> None:
        if self.width is not None and query.shape[1] != int(self.width):
            raise InvalidInputError(
                f"{name} has {query.shape[1]} features, but {type(self).__name__} was fitted on "
                f"{int(self.width)}; use the same model and layer for both"
            )

    def _query(
        self, query: Any, model: Any, loader: Iterable[Any] | None, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Features of queries in any form, and their labels if they came with some."""
        if (query is None) == (model is None) or (model is None) != (loader is None):
            raise InvalidInputError("give either query=, or model= and loader=")
        if query is None:
            query = self._from_loader(model, loader or (), options)
        values, labels = unpacked(query, "query", self.feature)
        features = self._check(values, "query")
        return features, None if labels is None else as_labels(labels, "the query's labels", len(features))

    def _from_loader(self, model: Any, loader: Iterable[Any], options: dict[str, Any]) -> Any:
        return extract_features(model, loader, self.feature, **options, **self._where).values

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call fit(...) first")

    def _extra(self) -> dict[str, Any]:
        pool = self._where["pool"]
        if callable(pool):
            raise InvalidTypeError("pool is a function, which cannot be saved; use a named one or embed()")
        return {"layer": self._where["layer"], "pool": pool}

    def _set_extra(self, extra: dict[str, Any]) -> None:
        layer, pool = extra.get("layer"), extra.get("pool")
        if layer is not None:
            text(layer, "layer")
        self._where = {"layer": layer, "pool": choice(pool, "pool", (None, "mean", "tokens", "flatten"))}


Stat = Literal["max", "mean", "median", "min"]
