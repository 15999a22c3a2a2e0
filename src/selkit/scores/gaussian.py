"""Distances to Gaussians with one covariance, fitted to the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, NotFittedError
from selkit.scores.base import UncertaintyScore
from selkit.scores.covariance import Shrinkage, Whitening, check_shrinkage, class_means, whitening_of
from selkit.utils.arrays import ArrayLike
from selkit.utils.checks import boolean


class GaussianScore(UncertaintyScore):
    """Squared Mahalanobis distance to the nearest class mean, with a covariance that all classes share (Lee
    et al. 2018, "A simple unified framework for detecting out-of-distribution samples").

    Parameters
    ----------
    shrinkage
        ``"ledoit-wolf"``, or the weight of the identity in [0, 1]; see
        :class:`selkit.scores.MahalanobisScore`.
    one_class
        Take all references as one class, and no labels.

    Examples
    --------
    >>> import torch
    >>> X = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    >>> y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    >>> score = GaussianScore(shrinkage=0.0).fit(torch.cat([X, X + 10]), y)
    >>> score.score(torch.tensor([[0.0, 0.0], [10.0, 11.0]])).round(decimals=4)
    tensor([0., 2.])
    """

    buffer_names = ("center", "whitening", "stretch", "rest", "means", "classes")
    center: Tensor | None
    whitening: Tensor | None
    stretch: Tensor | None
    rest: Tensor | None
    means: Tensor | None
    classes: Tensor | None
    shrinkage: Shrinkage
    one_class: bool

    def __init__(self, shrinkage: Shrinkage = "ledoit-wolf", *, one_class: bool = False) -> None:
        super().__init__()
        self.keep(shrinkage=shrinkage, one_class=one_class)

    def _needs_labels(self) -> bool:
        return not self.one_class

    def _check_params(self) -> None:
        check_shrinkage(self.shrinkage)
        boolean(self.one_class, "one_class")

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        if y is None or self.one_class:
            labels = torch.zeros(len(X), dtype=torch.long, device=X.device)
        else:
            labels = y.to(X.device)
        if labels.ndim != 1:
            raise InvalidInputError(f"y must have one label for each reference; got {tuple(labels.shape)}")
        self.classes, member = torch.unique(labels, return_inverse=True)
        means = class_means(X, member, len(self.classes))
        root = whitening_of(X, means, member, self.shrinkage)
        self.center = means.mean(
            0
        )  # subtracted in float64, before whitening: data may be far from the origin
        self.whitening, self.stretch, self.rest = root.matrix, root.stretch, root.rest
        self.means = root(means - self.center)

    def class_distances(self, query: ArrayLike) -> Tensor:
        """Squared Mahalanobis distance to each class mean.

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
            return self._distances(checked).to(checked.dtype).to(checked.device)

    def whitener(self) -> Whitening:
        """The map of centred embeddings after which distances to :attr:`means` are Euclidean."""
        if self.whitening is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call fit(...) first")
        return Whitening(self.whitening, self.stretch, self.rest)

    def _distances(self, query: Tensor) -> Tensor:
        """Squared distances in float64: some scores are small differences of them."""
        if self.center is None or self.means is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call fit(...) first")
        inside = self.whitener()(query.to(self.center) - self.center)
        # differences, not products: a query may be very near to a mean
        return torch.cdist(inside, self.means, compute_mode="donot_use_mm_for_euclid_dist").square()

    def _nearest(self, query: Tensor) -> Tensor:
        return self._distances(query).amin(1)

    def _score(self, query: Tensor) -> Tensor:
        return self._nearest(query)


class RelativeMahalanobisScore(GaussianScore):
    """Squared Mahalanobis distance to the nearest class mean, minus that to one Gaussian fitted to all
    references (Ren et al. 2021, "A simple fix to Mahalanobis distance for improving near-OOD detection").

    Needs labels of at least two classes.

    Parameters
    ----------
    shrinkage
        As in :class:`GaussianScore`, for both covariances.

    Examples
    --------
    >>> import torch
    >>> X = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    >>> y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    >>> score = RelativeMahalanobisScore(shrinkage=0.0).fit(torch.cat([X, X + 10]), y)
    >>> score.score(torch.tensor([[0.0, 0.0], [5.0, 5.0]])).round(decimals=2)
    tensor([ -0.9900, 100.0000])
    """

    def __init__(self, shrinkage: Shrinkage = "ledoit-wolf") -> None:
        super().__init__(shrinkage=shrinkage)
        self.background = GaussianScore(shrinkage=shrinkage, one_class=True)

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        super()._fit(X, y)
        if self.classes is not None and len(self.classes) < 2:
            raise InvalidInputError(
                "y has one class only, which is as far as all references; use GaussianScore"
            )
        self.background = GaussianScore(shrinkage=self.shrinkage, one_class=True)
        self.background._fit(X, None)

    def _score(self, query: Tensor) -> Tensor:
        return self._nearest(query) - self.background._nearest(query)
