"""Distances to the nearest references."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from selkit.errors import FileFormatError, InvalidInputError, NotAvailableError, NotFittedError
from selkit.scores.approximate import build, opened, search
from selkit.scores.base import Stat, UncertaintyScore
from selkit.scores.cluster import DaskRows, is_dask
from selkit.scores.covariance import Shrinkage, Whitening, check_shrinkage, class_means, whitening_of
from selkit.scores.pca import TensorPCA, check_pca, fitted_projection, rebuilt_projection
from selkit.scores.rows import FileRows, Rows, TensorRows, as_rows, blocks_of
from selkit.scores.search import References, nearest
from selkit.utils.arrays import ArrayLike, check_count
from selkit.utils.checks import choice
from selkit.utils.precision import exact_device, full_precision

Index = Literal["exact", "faiss"]
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
    index
        ``"exact"``, or ``"faiss"`` for an approximate search by a graph of neighbours, which can miss some
        (extra ``faiss``).

    Notes
    -----
    References that are a ``numpy.memmap`` stay in their file and are read a block at a time; those of a Dask
    array are searched block by block on Dask's cluster (extra ``dask``). Other references are kept as they
    are, not copied: do not change them afterwards.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ("reference", "center", "norms", "file", "graph")
    space_names: ClassVar[tuple[str, ...]] = ("projection",)  # the state that maps into the space
    reference: Tensor | None
    center: Tensor | None
    norms: Tensor | None
    file: Tensor | None
    graph: Tensor | None
    k: int
    stat: Stat
    pca: TensorPCA | float | None
    index: Index

    def __init__(
        self, k: int = 1, stat: Stat = "max", pca: TensorPCA | float | None = None, *, index: Index = "exact"
    ) -> None:
        super().__init__()
        self.keep(k=k, stat=stat, pca=pca, index=index)
        self.projection: TensorPCA | None = None
        self._outside: DaskRows | FileRows | None = None
        self._faiss: Any = None

    # the space in which neighbours are near

    def _learn_space(self, X: Rows) -> None:
        """Learn what ``_to_space`` needs, from references behind the projection."""

    @abstractmethod
    def _to_space(self, X: Tensor) -> Tensor:
        """References or queries where Euclidean distance is what counts."""

    def _distance(self, euclidean: Tensor, query: Tensor) -> Tensor:
        """The score's distance from the Euclidean one in that space."""
        return euclidean

    # fitting

    def _check_params(self) -> None:
        check_count(self.k, "k")
        choice(self.stat, "stat", STATS)
        choice(self.index, "index", ("exact", "faiss"))
        if self.pca is not None:
            check_pca(self.pca)

    def _check_references(self, values: object) -> Any:
        if is_dask(values):
            return DaskRows.checked(values, "X")
        if isinstance(values, np.memmap):
            return FileRows.checked(values, "X")
        return self._check(values, "X")

    def _fit(self, X: Tensor | Rows, y: Tensor | None) -> None:
        if X.shape[0] < self.k:
            raise InvalidInputError(
                f"k={self.k} neighbours need at least as many references; got {X.shape[0]}"
            )
        if self.index == "faiss" and not isinstance(X, Tensor):
            raise NotAvailableError("index='faiss' needs references in memory; use index='exact' for others")
        self._faiss = None
        self.projection = None if self.pca is None else fitted_projection(self.pca, X)
        self._learn_space(as_rows(X).mapped(self._projected))
        if isinstance(X, Tensor):
            inside = self._inside(X).contiguous()
            self._keep_references(References.of(inside))
            self.reference = inside
            self.graph = build(inside) if self.index == "faiss" else None
        elif isinstance(X, DaskRows):
            self._outside = X.mapped(self._detached()._inside)
        elif isinstance(X, FileRows):
            self.file, self._outside = X.address(), X
            self._keep_references(References.of(X.mapped(self._inside)))

    def _keep_references(self, found: References) -> None:
        self.center, self.norms = found.center, found.norms

    def _forget(self) -> None:
        super()._forget()
        self._outside = self._faiss = None

    def _inliers(self, X: Any, q: float) -> Tensor:
        if not isinstance(X, Tensor):
            raise NotAvailableError(
                "q= needs references in memory; filter the file or the array before fitting"
            )
        return super()._inliers(X, q)

    def _detached(self) -> KNNScore:
        """A copy without references, light enough to be sent to workers."""
        copy = type(self)(**self.get_params(deep=False))
        light = {k: v for k, v in self.state_dict().items() if k.split(".")[0] in self.space_names}
        copy.load_state_dict(light)
        return copy

    # searching

    def _projected(self, X: Tensor) -> Tensor:
        return X if self.projection is None else self.projection.coordinates(X)

    def _inside(self, X: Tensor) -> Tensor:
        return self._to_space(self._projected(X))

    def _references(self) -> References:
        if self.reference is not None:
            rows: Rows = TensorRows(self.reference)
        elif self.file is not None:
            if not isinstance(self._outside, FileRows):
                self._outside = self._reopened(self.file)
            rows = self._outside.mapped(self._inside)
        else:
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call fit(...) first")
        if self.center is None or self.norms is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call fit(...) first")
        # products in float32 suffice where the data were in float32: distances are computed anew
        fast = self.center.dtype if self.precision is None else self.precision.dtype
        return References(rows, self.center, self.norms, fast)

    def _reopened(self, address: Tensor) -> FileRows:
        found = FileRows.at(address)
        if self.center is not None and self.norms is not None:
            first = self._inside(found.block(0, 64)).to(self.center)
            if not torch.allclose((first - self.center).square().sum(1), self.norms[:64], rtol=1e-3):
                raise FileFormatError(f"{found.array.filename} does not hold the references of fit any more")
        return found

    def _nearest(self, inside: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if isinstance(self._outside, DaskRows):
            return self._outside.nearest(inside, k)
        references = self._references()
        if self.graph is None:
            return nearest(inside, references, k)
        self._faiss = opened(self.graph) if self._faiss is None else self._faiss
        return search(self._faiss, inside, references, k)

    def _score(self, query: Tensor) -> Tensor:
        return self._reduce(self._search(query, 0)[0])

    def _self_scores(self) -> Tensor | None:
        rows = self._outside if isinstance(self._outside, DaskRows) else self._references().rows
        if rows.shape[0] <= self.k:
            return None
        parts = []
        with torch.no_grad():
            for _, block in blocks_of(rows):
                distances, _ = self._nearest(block, self.k + 1)
                parts.append(self._reduce(self._distance(distances[:, 1:], block.to(distances.device))))
        return torch.cat(parts)

    def _reduce(self, distances: Tensor) -> Tensor:
        if self.stat == "max":
            return distances[:, -1]
        if self.stat == "min":
            return distances[:, 0]
        return distances.mean(1) if self.stat == "mean" else distances[:, (self.k - 1) // 2]

    def _search(self, query: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        device = query.device if isinstance(self._outside, DaskRows) else self._references().center.device
        inside = self._inside(query.to(device))
        distances, index = self._nearest(inside, self.k + offset)
        return self._distance(distances[:, offset:], inside.to(distances.device)), index[:, offset:]

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
            distances, index = self._search(checked, offset)
        dtype = checked.dtype if self.precision is None else self.precision.dtype
        return distances.to(dtype).to(checked.device), index.to(checked.device)

    def _rebuild(self, keys: list[str]) -> None:
        self.projection = rebuilt_projection(self.pca, keys)
        self._outside = self._faiss = None

    def _extra(self) -> dict[str, Any]:
        if isinstance(self._outside, DaskRows):
            raise NotAvailableError(
                "references in a Dask array cannot be saved with the score; save the array, and fit again"
            )
        return super()._extra()

    def __getstate__(self) -> dict[str, Any]:
        # both are made again: from the bytes of the graph, and from the address of the file
        outside = None if isinstance(self._outside, FileRows) else self._outside
        return {**super().__getstate__(), "_faiss": None, "_outside": outside}


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
    index
        ``"exact"``, or ``"faiss"`` for an approximate search by a graph of neighbours, which can miss some
        (extra ``faiss``).

    Notes
    -----
    References that are a ``numpy.memmap`` stay in their file and are read a block at a time; those of a Dask
    array are searched block by block on Dask's cluster (extra ``dask``). Other references are kept as they
    are, not copied: do not change them afterwards.

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
    k, stat, pca, index
        As in :class:`EuclideanScore`.

    Examples
    --------
    >>> import torch
    >>> score = CosineScore(k=1).fit(X=torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> score.score(torch.tensor([[5.0, 0.0], [0.0, 3.0], [0.0, 0.0]])).round(decimals=4)
    tensor([0.0000, 0.2929, 1.0000])
    """

    def _learn_space(self, X: Rows) -> None:
        for where, block in blocks_of(X):
            zero = (block == 0).all(1)
            if bool(zero.any()):
                raise InvalidInputError(
                    f"references are zero everywhere, first in row {where.start + int(zero.int().argmax())}: "
                    "they have no direction; remove them or use EuclideanScore"
                )

    def _to_space(self, X: Tensor) -> Tensor:
        # in float64: directions may be nearly the same, far from the origin; and scaled first, so that the
        # length neither overflows nor vanishes
        X = X.to(exact_device(X)).double()
        scaled = X / X.abs().amax(1, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)
        length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        unit: Tensor = scaled.div_(length.clamp(min=torch.finfo(X.dtype).tiny))
        return unit

    def _distance(self, euclidean: Tensor, query: Tensor) -> Tensor:
        zero = (query == 0).all(1, keepdim=True)
        return torch.where(zero, torch.ones_like(euclidean), euclidean.square() / 2)


class MahalanobisScore(KNNScore):
    """Distance to the nearest references in the space where the references' covariance is the identity.

    Parameters
    ----------
    k, stat, pca, index
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

    buffer_names = ("mean", "whitening", "stretch", "rest")
    space_names = ("projection", "mean", "whitening", "stretch", "rest")
    mean: Tensor | None
    whitening: Tensor | None
    stretch: Tensor | None
    rest: Tensor | None
    shrinkage: Shrinkage

    def __init__(
        self,
        k: int = 1,
        stat: Stat = "max",
        pca: TensorPCA | float | None = None,
        *,
        shrinkage: Shrinkage = "ledoit-wolf",
        index: Index = "exact",
    ) -> None:
        super().__init__(k, stat, pca, index=index)
        self.keep(shrinkage=shrinkage)

    def _check_params(self) -> None:
        super()._check_params()
        check_shrinkage(self.shrinkage)

    def _learn_space(self, X: Rows) -> None:
        one = torch.zeros(X.shape[0], dtype=torch.long, device=X.block(0, 1).device)
        means = class_means(X, one, 1)
        root = whitening_of(X, means, one, self.shrinkage)
        self.mean = means[0]
        self.whitening, self.stretch, self.rest = root.matrix, root.stretch, root.rest

    def whitener(self) -> Whitening:
        """The map of embeddings, less :attr:`mean`, after which distances are Euclidean."""
        if self.whitening is None:
            raise NotFittedError("MahalanobisScore is not fitted yet: call fit(...) first")
        return Whitening(self.whitening, self.stretch, self.rest)

    def _to_space(self, X: Tensor) -> Tensor:
        white = self.whitener()
        if self.mean is None:
            raise NotFittedError("MahalanobisScore is not fitted yet: call fit(...) first")
        # centred in float64: far from the origin float32 would lose all digits of a difference
        return white(X.to(white.matrix) - self.mean)
