"""Covariances that can be inverted, and the whitening that they give."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.scores.rows import Rows, blocks_of
from selkit.utils.arrays import check_fraction
from selkit.utils.precision import exact_device

Shrinkage: TypeAlias = Literal["ledoit-wolf"] | float


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


def whitening_of(X: Tensor | Rows, means: Tensor, member: Tensor, shrinkage: Shrinkage) -> Tensor:
    """``W`` in float64, so that rows ``(x - mean) W`` of ``X`` have about the identity as covariance.

    Raises
    ------
    InvalidInputError
        If the covariance is zero or singular, or for another ``shrinkage``.
    """
    covariance, fourth = second_moment(X, means, member)
    return whitening(shrunk(covariance, fourth, len(member), shrinkage))


def ledoit_wolf(covariance: Tensor, fourth: Tensor, samples: int) -> float:
    """How far to shrink towards a multiple of the identity (Ledoit & Wolf 2004, "A well-conditioned estimator
    for large-dimensional covariance matrices", Lemma 3.2 to 3.4).

    Parameters
    ----------
    covariance
        Biased sample covariance ``(D, D)``.
    fourth
        Mean of ``|x - mean|^4``.
    samples
        Number of samples.

    Returns
    -------
    float
        Weight of the identity, in [0, 1].
    """
    size = covariance.shape[0]
    scale = covariance.diagonal().mean()
    squared = covariance.square().sum()
    spread = (squared - size * scale.square()) / size
    noise = (fourth - squared) / (samples * size)
    if float(spread) <= 0:
        return 1.0
    return float((noise.clamp(min=0) / spread).clamp(max=1))


def shrunk(covariance: Tensor, fourth: Tensor, samples: int, shrinkage: Shrinkage) -> Tensor:
    """``(1 - w) S + w mean(diag S) I``.

    Raises
    ------
    InvalidInputError
        For another ``shrinkage``, or features that do not vary at all.
    """
    scale = covariance.diagonal().mean()
    if not float(scale) > 0:
        raise InvalidInputError(
            "the covariance of the references is zero: all of them (or all of each class) are equal"
        )
    if shrinkage == "ledoit-wolf":
        weight = ledoit_wolf(covariance, fourth, samples)
    else:
        weight = check_fraction(shrinkage, "shrinkage (where it is not 'ledoit-wolf')")
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
        raise InvalidInputError(
            "the covariance of the references is singular: fewer samples than dimensions, or features that "
            "depend on each other; use shrinkage='ledoit-wolf', a larger shrinkage, or pca="
        )
    identity = torch.eye(len(covariance)).to(covariance)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.T.contiguous()
