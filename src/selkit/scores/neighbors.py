"""Distances to the nearest references."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.scores.base import Stat, UncertaintyScore
from selkit.scores.search import nearest
from selkit.utils.arrays import ArrayLike, check_count

STATS = ("max", "mean", "median", "min")


class KNNScore(UncertaintyScore):
    """Base of the scores that look at the k nearest references.

    Parameters
    ----------
    k
        Number of neighbours.
    stat
        What is taken of their distances: ``"max"`` (the distance to the k-th), ``"mean"``, ``"median"``
        (the lower one for even k) or ``"min"``.
    """

    buffer_names = ("reference", "squared_norms")
    reference: Tensor | None
    squared_norms: Tensor | None

    def __init__(self, k: int = 1, stat: Stat = "max") -> None:
        super().__init__()
        self.keep(k=k, stat=stat)

    k: int
    stat: Stat

    @abstractmethod
    def _embed_fit(self, X: Tensor) -> Tensor:
        """References in the space where neighbours are looked for; learns that space."""

    @abstractmethod
    def _embed(self, query: Tensor) -> Tensor:
        """Queries in the same space."""

    def _distance(self, squared: Tensor) -> Tensor:
        return squared.sqrt()

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        check_count(self.k, "k")
        if self.stat not in STATS:
            raise InvalidInputError(f"stat must be one of {list(STATS)}; got {self.stat!r}")
        if X.shape[0] < self.k:
            raise InvalidInputError(
                f"k={self.k} neighbours need at least as many references; got {X.shape[0]}"
            )
        self.reference = self._embed_fit(X)
        self.squared_norms = self.reference.square().sum(1)

    def _score(self, query: Tensor) -> Tensor:
        return self._reduce(self._search(query, 0)[0])

    def _self_scores(self) -> Tensor | None:
        if self.reference is None or self.reference.shape[0] <= self.k:
            return None
        squared, _ = nearest(self.reference, self.reference, self.k + 1, squared_norms=self.squared_norms)
        return self._reduce(self._distance(squared[:, 1:]))

    def _reduce(self, distances: Tensor) -> Tensor:
        if self.stat == "max":
            return distances[:, -1]
        if self.stat == "min":
            return distances[:, 0]
        return distances.mean(1) if self.stat == "mean" else distances[:, (self.k - 1) // 2]

    def _search(self, query: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        if self.reference is None:
            raise InvalidInputError(f"{type(self).__name__} has no references")
        inside = self._embed(query.to(self.reference))
        squared, index = nearest(inside, self.reference, self.k + offset, squared_norms=self.squared_norms)
        distances = self._distance(squared[:, offset:])
        return distances.to(query.device), index[:, offset:].to(query.device)

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
            ``fit`` (after the filter, where ``q=`` was given).

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
        with torch.no_grad():
            return self._search(checked, offset)


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

    Examples
    --------
    >>> import torch
    >>> score = EuclideanScore(k=1).fit(X=torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
    >>> score.score(torch.tensor([[3.0, 4.0]]))
    tensor([5.])
    """

    def _embed_fit(self, X: Tensor) -> Tensor:
        return X.clone()

    def _embed(self, query: Tensor) -> Tensor:
        return query
