"""Distances to the nearest references."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, NotFittedError
from selkit.scores.base import Stat, UncertaintyScore
from selkit.scores.covariance import Shrinkage, class_means, whitening_of
from selkit.scores.pca import TensorPCA, fitted_projection, rebuilt_projection
from selkit.scores.search import References, nearest
from selkit.utils.arrays import ArrayLike, check_count
from selkit.utils.precision import full_precision

STATS = ("max", "mean", "median", "min")


class KNNScore(UncertaintyScore):
    """Base of the scores that look at the k nearest references, found exactly.

    Parameters
    ----------
    k
        Number of neighbours.
    stat
        What is taken of their distances: ``"max"`` (the distance to the k-th), ``"mean"``, ``"median"``
        (the lower one for even k) or ``"min"``.
    pca
        Search among principal components: a :class:`TensorPCA`, or the number of components (a fraction: of
        explained variance).
    """

    buffer_names: ClassVar[tuple[str, ...]] = ("reference", "center", "norms")
    reference: Tensor | None
    center: Tensor | None
    norms: Tensor | None
    k: int
    stat: Stat
    pca: TensorPCA | float | None

    def __init__(self, k: int = 1, stat: Stat = "max", pca: TensorPCA | float | None = None) -> None:
        super().__init__()
        self.keep(k=k, stat=stat, pca=pca)
        self.projection: TensorPCA | None = None

    # the space in which neighbours are near

    def _learn_space(self, X: Tensor) -> None:
        """Learn what ``_to_space`` needs, from references behind the projection."""

    @abstractmethod
    def _to_space(self, X: Tensor) -> Tensor:
        """References or queries where Euclidean distance is what counts."""

    def _distance(self, euclidean: Tensor, query: Tensor) -> Tensor:
        """The score's distance from the Euclidean one in that space."""
        return euclidean

    # fitting and scoring

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        check_count(self.k, "k")
        if self.stat not in STATS:
            raise InvalidInputError(f"stat must be one of {list(STATS)}; got {self.stat!r}")
        if X.shape[0] < self.k:
            raise InvalidInputError(
                f"k={self.k} neighbours need at least as many references; got {X.shape[0]}"
            )
        self.projection = None if self.pca is None else fitted_projection(self.pca, X)
        projected = self._projected(X)
        self._learn_space(projected)
        self._keep_references(References.of(self._to_space(projected)))

    def _keep_references(self, found: References) -> None:
        self.reference, self.center, self.norms = torch.as_tensor(found.rows), found.center, found.norms

    def _references(self) -> References:
        if self.reference is None or self.center is None or self.norms is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call fit(...) first")
        return References(self.reference, self.center, self.norms)

    def _projected(self, X: Tensor) -> Tensor:
        return X if self.projection is None else self.projection.transform(X)

    def _score(self, query: Tensor) -> Tensor:
        return self._reduce(self._search(query, 0)[0])

    def _self_scores(self) -> Tensor | None:
        references = self._references()
        if len(references) <= self.k:
            return None
        rows = torch.as_tensor(references.rows)
        with torch.no_grad():
            distances, _ = nearest(rows, references, self.k + 1)
            return self._reduce(self._distance(distances[:, 1:], rows))

    def _reduce(self, distances: Tensor) -> Tensor:
        if self.stat == "max":
            return distances[:, -1]
        if self.stat == "min":
            return distances[:, 0]
        return distances.mean(1) if self.stat == "mean" else distances[:, (self.k - 1) // 2]

    def _search(self, query: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        references = self._references()
        inside = self._to_space(self._projected(query.to(references.center)))
        distances, index = nearest(inside, references, self.k + offset)
        found = self._distance(distances[:, offset:], inside)
        return found.to(query.device), index[:, offset:].to(query.device)

    def knn_search(self, query: ArrayLike, offset: int = 0) -> tuple[Tensor, Tensor]:
        """The k nearest references of each query.

        Parameters
        ----------
        query
            Shape ``(N, D)``.
        offset
            Skip that many nearest ones: 1 when the queries are the references themselves.

        Returns
        -------
        distances, indices
            Shape ``(N, k)`` each, nearest first; indices count the references as they were given to
            ``fit`` (after the filter, where ``q=`` was given). Of references at the same distance any may
            be named.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        InvalidInputError
            For a query that cannot be used, or ``k + offset`` above the number of references.
        """
        self._check_fitted()
        checked = self._check(query, "query")
        self._check_width(checked, "query")
        check_count(offset, "offset", 0)
        with torch.no_grad(), full_precision(checked.device):
            return self._search(checked, offset)

    def _rebuild(self, keys: list[str]) -> None:
        self.projection = rebuilt_projection(self.pca, keys)


class EuclideanScore(KNNScore):
    """Euclidean distance to the nearest references (Sun et al. 2022, "Out-of-distribution detection with
    deep nearest neighbors").

    Parameters
    ----------
    k
        Number of neighbours.
    stat
        ``"max"`` (the distance to the k-th), ``"mean"``, ``"median"`` (the lower one for even k) or
        ``"min"`` of their distances.
    pca
        Search among principal components: a :class:`TensorPCA`, or the number of components (a fraction: of
        explained variance).

    Examples
    --------
    >>> import torch
    >>> score = EuclideanScore(k=1).fit(X=torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
    >>> score.score(torch.tensor([[3.0, 4.0]]))
    tensor([5.])
    """

    def _to_space(self, X: Tensor) -> Tensor:
        return X


class CosineScore(KNNScore):
    """Cosine distance, 1 - cos, to the nearest references.

    A query that is zero everywhere has no direction: its distance to every reference is 1. References
    must not be zero.

    Parameters
    ----------
    k, stat, pca
        As in :class:`EuclideanScore`.

    Examples
    --------
    >>> import torch
    >>> score = CosineScore(k=1).fit(X=torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> score.score(torch.tensor([[5.0, 0.0], [0.0, 3.0], [0.0, 0.0]])).round(decimals=4)
    tensor([0.0000, 0.2929, 1.0000])
    """

    def _learn_space(self, X: Tensor) -> None:
        zero = (X == 0).all(1)
        if bool(zero.any()):
            raise InvalidInputError(
                f"{int(zero.sum())} of {len(X)} references are zero everywhere, first in row "
                f"{int(zero.int().argmax())}: they have no direction; remove them or use EuclideanScore"
            )

    def _to_space(self, X: Tensor) -> Tensor:
        # scaled first, so that the length neither overflows nor vanishes
        scaled = X / X.abs().amax(1, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)
        length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        unit: Tensor = scaled / length.clamp(min=torch.finfo(X.dtype).tiny)
        return unit

    def _distance(self, euclidean: Tensor, query: Tensor) -> Tensor:
        zero = (query == 0).all(1, keepdim=True)
        return torch.where(zero, torch.ones_like(euclidean), euclidean.square() / 2)


class MahalanobisScore(KNNScore):
    """Distance to the nearest references in the space where the references' covariance is the identity.

    Parameters
    ----------
    k, stat, pca
        As in :class:`EuclideanScore`.
    shrinkage
        ``"ledoit-wolf"``: towards a multiple of the identity, by what the data call for, so that fewer
        samples than dimensions work; or the weight of the identity in [0, 1].

    Examples
    --------
    >>> import torch
    >>> X = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> score = MahalanobisScore(k=1, shrinkage=0.0).fit(X=X)
    >>> score.score(torch.tensor([[4.0, 0.0], [0.0, 2.0]])).round(decimals=4)
    tensor([1.4142, 1.4142])
    """

    buffer_names = ("whitening",)
    whitening: Tensor | None
    shrinkage: Shrinkage

    def __init__(
        self,
        k: int = 1,
        stat: Stat = "max",
        pca: TensorPCA | float | None = None,
        shrinkage: Shrinkage = "ledoit-wolf",
    ) -> None:
        super().__init__(k=k, stat=stat, pca=pca)
        self.keep(shrinkage=shrinkage)

    def _learn_space(self, X: Tensor) -> None:
        one = torch.zeros(len(X), dtype=torch.long, device=X.device)
        self.whitening = whitening_of(X, class_means(X, one, 1), one, self.shrinkage).to(X)

    def _to_space(self, X: Tensor) -> Tensor:
        if self.whitening is None:
            raise NotFittedError("MahalanobisScore is not fitted yet: call fit(...) first")
        return X @ self.whitening
