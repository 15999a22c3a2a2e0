"""Covariances that can be inverted, and the whitening that they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.scores.rows import Rows, blocks_of
from selkit.utils.arrays import check_fraction
from selkit.utils.precision import exact_device

Shrinkage: TypeAlias = Literal["ledoit-wolf"] | float
OVERFLOW = "X holds numbers so large that their squares overflow; rescale them"
SINGULAR = (
    "the covariance of the references is singular: fewer samples than dimensions, or features that "
    "depend on each other; use shrinkage='ledoit-wolf', a larger shrinkage, or pca="
)


def class_means(X: Tensor | Rows, member: Tensor, classes: int) -> Tensor:
    """Mean of the rows of each class, in float64.

    Parameters
    ----------
    X, member
        Rows ``(N, D)`` and the class number of each.
    classes
        Number of classes, each with a member.

    Returns
    -------
    Tensor
        Shape ``(C, D)``.
    """
    device = exact_device(member)
    sums = torch.zeros((classes, _width(X)), dtype=torch.float64, device=device)
    for where, part in blocks_of(X):
        sums.index_add_(0, member[where].to(device), part.to(device).double())
    return sums / torch.bincount(member.to(device), minlength=classes)[:, None]


def _width(X: Tensor | Rows) -> int:
    return X.shape[1] if isinstance(X, Tensor) else X.block(0, 1).shape[1]  # a transform may change it


def second_moment(X: Tensor | Rows, means: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """Biased covariance around class means, and the mean fourth power of the centred length, in float64.

    Parameters
    ----------
    X, member
        Rows ``(N, D)`` and the class number of each.
    means
        From :func:`class_means`.

    Returns
    -------
    covariance, fourth
        Shapes ``(D, D)`` and ``()``.
    """
    device = means.device
    width = means.shape[1]
    product = torch.zeros((width, width), dtype=torch.float64, device=device)
    fourth = torch.zeros((), dtype=torch.float64, device=device)
    for where, part in blocks_of(X):
        centred = part.to(device).double() - means[member[where].to(device)]
        product += centred.T @ centred
        fourth += centred.square().sum(1).square().sum()
    return product / len(member), fourth / len(member)


@dataclass(frozen=True)
class Whitening:
    """A linear map after which the covariance is about the identity, all in float64.

    Where there are fewer samples than dimensions, nothing of the size ``(D, D)`` is made: outside the space of
    the ``r`` directions in which the samples vary, the map is a multiple of the identity.

    Attributes
    ----------
    matrix
        ``x`` becomes ``x matrix``, ``(D, D)``; or, with ``stretch``, those directions, ``(D, r)``.
    stretch
        ``None``, or: ``x`` becomes ``rest x + ((x matrix) stretch) matrix'``, ``(r,)``.
    rest
        ``None``, or a number, ``()``.
    """

    matrix: Tensor
    stretch: Tensor | None = None
    rest: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Rows ``(N, D)``, centred, where the covariance is the identity."""
        if self.stretch is None or self.rest is None:
            return x @ self.matrix
        inside = x @ self.matrix
        return torch.addmm(x * self.rest, inside * self.stretch, self.matrix.T)

    def dense(self) -> Tensor:
        """The map as one matrix, ``(D, D)``."""
        if self.stretch is None or self.rest is None:
            return self.matrix
        full: Tensor = (self.matrix * self.stretch) @ self.matrix.T
        full.diagonal().add_(self.rest)
        return full


def whitening_of(X: Tensor | Rows, means: Tensor, member: Tensor, shrinkage: Shrinkage) -> Whitening:
    """What gives centred rows of ``X`` about the identity as covariance.

    Raises
    ------
    InvalidInputError
        If the covariance is zero or singular, or for another ``shrinkage``.
    """
    if len(member) < means.shape[1]:
        return _whitening_of_few(X, means, member, shrinkage)
    covariance, fourth = second_moment(X, means, member)
    return Whitening(whitening(shrunk(covariance, fourth, len(member), shrinkage)))


def _whitening_of_few(X: Tensor | Rows, means: Tensor, member: Tensor, shrinkage: Shrinkage) -> Whitening:
    """The same for fewer samples than dimensions, by the singular values of the centred samples."""
    rows = torch.cat([part.to(means.device).double() for _, part in blocks_of(X)])
    rows -= means[member.to(means.device)]
    samples, width = rows.shape
    fourth = rows.square().sum(1).square().mean()
    if not math.isfinite(float(fourth)):
        raise InvalidInputError(OVERFLOW)
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    kept = sizes > sizes[0] * width * torch.finfo(torch.float64).eps
    variance, directions = sizes[kept].square() / samples, directions[kept]
    scale = variance.sum() / width
    weight = _weight(scale, variance.square().sum(), fourth, (samples, width), shrinkage)
    spread = (1 - weight) * variance + weight * scale
    rest = weight * scale
    if float(rest) < 1e-14 * float(spread.max()):
        raise InvalidInputError(SINGULAR)
    rest = rest.rsqrt()
    return Whitening(directions.T.contiguous(), spread.rsqrt() - rest, rest)


def ledoit_wolf(scale: Tensor, squared: Tensor, fourth: Tensor, shape: tuple[int, int]) -> float:
    """How far to shrink towards a multiple of the identity (Ledoit & Wolf 2004, "A well-conditioned estimator
    for large-dimensional covariance matrices", Lemma 3.2 to 3.4).

    Parameters
    ----------
    scale, squared
        Mean of the diagonal, and sum of squares, of the biased sample covariance.
    fourth
        Mean of ``|x - mean|^4``.
    shape
        Number of samples and of dimensions.

    Returns
    -------
    float
        Weight of the identity, in [0, 1].
    """
    samples, size = shape
    spread = (squared - size * scale.square()) / size
    noise = (fourth - squared) / (samples * size)
    if float(spread) <= 0:
        return 1.0
    return float((noise.clamp(min=0) / spread).clamp(max=1))


def _weight(
    scale: Tensor, squared: Tensor, fourth: Tensor, shape: tuple[int, int], shrinkage: Shrinkage
) -> float:
    """The weight of the identity that is asked for."""
    if not float(scale) > 0:
        raise InvalidInputError(
            "the covariance of the references is zero: all of them (or all of each class) are equal"
        )
    if not math.isfinite(float(squared)):
        raise InvalidInputError(OVERFLOW)
    weight = check_shrinkage(shrinkage)
    return ledoit_wolf(scale, squared, fourth, shape) if weight is None else weight


def check_shrinkage(shrinkage: object) -> float | None:
    """The weight of the identity, ``None`` for Ledoit and Wolf's.

    Raises
    ------
    InvalidInputError
        For anything else.
    """
    if isinstance(shrinkage, str) and shrinkage == "ledoit-wolf":
        return None
    return check_fraction(shrinkage, "shrinkage (where it is not 'ledoit-wolf')")


def shrunk(covariance: Tensor, fourth: Tensor, samples: int, shrinkage: Shrinkage) -> Tensor:
    """``(1 - w) S + w mean(diag S) I``.

    Raises
    ------
    InvalidInputError
        For another ``shrinkage``, or features that do not vary at all.
    """
    scale = covariance.diagonal().mean()
    shape = (samples, len(covariance))
    weight = _weight(scale, covariance.square().sum(), fourth, shape, shrinkage)
    return (1 - weight) * covariance + weight * scale * torch.eye(len(covariance)).to(covariance)


def whitening(covariance: Tensor) -> Tensor:
    """``W`` with ``|x W|^2 = x' S^-1 x``: the transposed inverse of the Cholesky factor.

    Raises
    ------
    InvalidInputError
        If the covariance is singular to working precision.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    diagonal = factor.diagonal()
    if int(failed) or float(diagonal.min()) < 1e-7 * float(diagonal.max()):
        raise InvalidInputError(SINGULAR)
    identity = torch.eye(len(covariance)).to(covariance)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.T.contiguous()
