"""Losses of single samples, for risk-coverage curves: tensors in, one number per sample out."""

from __future__ import annotations

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.boundary import public
from selkit.utils.checks import given, integer


def _same_rows(preds: Tensor, target: Tensor) -> None:
    for name, value in (("preds", preds), ("target", target)):
        if not isinstance(value, Tensor):
            raise InvalidTypeError(f"{name} must be a tensor; got {given(value)}")
    if preds.ndim == 0 or target.ndim == 0 or preds.shape[0] != target.shape[0]:
        raise InvalidInputError(
            f"preds and target need one row per sample each; got {tuple(preds.shape)} and "
            f"{tuple(target.shape)}"
        )


def _same_shape(preds: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    _same_rows(preds, target)
    if preds.shape != target.shape:
        raise InvalidInputError(
            f"{name} needs preds and target of one shape; got {tuple(preds.shape)} and {tuple(target.shape)}"
        )
    return preds.reshape(len(preds), -1), target.reshape(len(target), -1)


def has_class_labels(preds: Tensor, target: Tensor) -> bool:
    """Whether :func:`zero_one_loss` knows what to do with such predictions and targets."""
    if target.is_floating_point() or target.is_complex() or preds.is_complex():
        return False
    target_ndim = target.ndim - (target.ndim == 2 and target.shape[1] == 1)
    preds_ndim = preds.ndim - (preds.ndim == 2 and preds.shape[1] == 1)
    return target_ndim == 1 and preds_ndim in ((1, 2) if preds.is_floating_point() else (1,))


def _valid(target: Tensor, ignore_index: int | None) -> Tensor | None:
    """Which elements of a target count; ``None`` for all."""
    if ignore_index is None:
        return None
    return target != integer(ignore_index, "ignore_index", -(2**63), 2**63 - 1)


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of each row over what counts; NaN where nothing does."""
    if valid is None:
        return values.mean(1)
    total = torch.where(valid, values, torch.zeros_like(values)).sum(1)
    return total / valid.sum(1)


@public
def zero_one_loss(preds: Tensor, target: Tensor, *, ignore_index: int | None = None) -> Tensor:
    """1 where the predicted class is wrong, else 0.

    Parameters
    ----------
    preds
        Class labels ``(N,)``, scores of classes ``(N, C)`` (their argmax is the prediction), or
        probabilities of the second of two classes ``(N,)`` or ``(N, 1)``, floating, above 0.5 for class 1.
    target
        Class labels, integer or boolean, ``(N,)`` or ``(N, 1)``.
    ignore_index
        A target that means that there is none.

    Returns
    -------
    Tensor
        float32, ``(N,)``; NaN where the prediction is NaN, or the target ``ignore_index``.

    Raises
    ------
    InvalidInputError
        For other shapes or floating targets, and for one number per sample outside [0, 1]: those are logits,
        whose sigmoid must be passed.

    Examples
    --------
    >>> zero_one_loss(torch.tensor([0, 2, 1]), torch.tensor([0, 1, 1]))
    tensor([0., 1., 0.])
    """
    _same_rows(preds, target)
    if not has_class_labels(preds, target):
        raise InvalidInputError(
            "the 0/1 loss needs class labels (N,) as target, and as preds labels (N,), class scores (N, C) "
            f"or probabilities (N,); got preds {tuple(preds.shape)} {preds.dtype} and target "
            f"{tuple(target.shape)} {target.dtype}. Pass your own loss=, a function (preds, target) -> one "
            "number per sample"
        )
    target = target.reshape(len(target)).long()
    unknown = preds.isnan().reshape(len(preds), -1).any(1)  # of what is not floating nothing is
    valid = _valid(target, ignore_index)
    unknown = unknown if valid is None else unknown | ~valid
    if preds.ndim == 2 and preds.shape[1] > 1:
        return torch.where(unknown, torch.nan, (preds.argmax(1) != target).float())
    preds = preds.reshape(len(preds))
    if preds.is_floating_point():
        if bool(((preds < 0) | (preds > 1)).any()):
            raise InvalidInputError(
                "preds has one number per sample and some lie outside [0, 1], so they are logits, not "
                "probabilities; pass their sigmoid (in SelectiveInferenceTask: activation='sigmoid')"
            )
        preds = preds > 0.5
    return torch.where(unknown, torch.nan, (preds.long() != target).float())


@public
def absolute_error(preds: Tensor, target: Tensor, *, ignore_index: int | None = None) -> Tensor:
    """Mean absolute difference of each sample.

    Parameters
    ----------
    preds, target
        Of one shape ``(N, ...)``.
    ignore_index
        Elements with this target are left out.

    Returns
    -------
    Tensor
        Floating, ``(N,)``; NaN where nothing counts.

    Raises
    ------
    InvalidInputError
        If the shapes differ.

    Examples
    --------
    >>> absolute_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([1.])
    """
    preds, target = _same_shape(preds, target, "the absolute error")
    return _mean((_floating(preds) - _floating(target)).abs(), _valid(target, ignore_index))


@public
def squared_error(preds: Tensor, target: Tensor, *, ignore_index: int | None = None) -> Tensor:
    """Mean squared difference of each sample.

    Parameters
    ----------
    preds, target
        Of one shape ``(N, ...)``.
    ignore_index
        Elements with this target are left out.

    Returns
    -------
    Tensor
        Floating, ``(N,)``; NaN where nothing counts.

    Raises
    ------
    InvalidInputError
        If the shapes differ.

    Examples
    --------
    >>> squared_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor([0., 4.])
    """
    preds, target = _same_shape(preds, target, "the squared error")
    return _mean((_floating(preds) - _floating(target)).square(), _valid(target, ignore_index))


def _floating(values: Tensor) -> Tensor:
    """At least single precision."""
    return values if values.dtype == torch.float64 else values.float()


@public
def dice_loss(preds: Tensor, target: Tensor, *, ignore_index: int | None = None) -> Tensor:
    """One minus the Dice coefficient of each sample's binary masks, ``2 |A and B| / (|A| + |B|)``.

    Parameters
    ----------
    preds, target
        Masks of one shape ``(N, ...)``: boolean, 0/1, or probabilities, which count above 0.5.
    ignore_index
        Elements with this target are left out of both masks.

    Returns
    -------
    Tensor
        float32, ``(N,)``; 0 where both masks are empty, NaN where a mask holds NaN, or nothing counts.

    Raises
    ------
    InvalidInputError
        If the shapes differ, or values lie outside [0, 1]: logits or labels of several classes.

    Examples
    --------
    >>> dice_loss(torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 0]]))
    tensor([0.3333])
    """
    preds, target = _same_shape(preds, target, "the Dice loss")
    valid = _valid(target, ignore_index)
    if valid is not None:
        preds, target = (torch.where(valid, mask, torch.zeros_like(mask)) for mask in (preds, target))
    unknown = (preds.isnan() | target.isnan()).any(1)
    unknown = unknown if valid is None else unknown | ~valid.any(1)
    for name, mask in (("preds", preds), ("target", target)):
        if mask.dtype != torch.bool and bool(((mask < 0) | (mask > 1)).any()):
            raise InvalidInputError(
                f"the Dice loss needs masks or probabilities, in [0, 1]; {name} has values outside. "
                "Pass the sigmoid of logits, or one mask per class"
            )
    first, second = preds > 0.5, target > 0.5
    both = (first & second).sum(1)
    sizes = first.sum(1) + second.sum(1)
    loss = torch.where(sizes > 0, 1 - 2 * both / sizes.clamp(min=1), 0.0)
    return torch.where(unknown, torch.nan, loss)
