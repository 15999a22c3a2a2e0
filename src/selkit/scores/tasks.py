"""What logits mean: one of several classes, two classes, or several labels; with members or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from selkit.errors import InvalidInputError

Task: TypeAlias = Literal["multiclass", "binary", "multilabel"]
TASKS = ("multiclass", "binary", "multilabel")


@dataclass(frozen=True)
class Canonical:
    """Logits in one shape for all tasks.

    Attributes
    ----------
    values
        Shape ``(N, C, M)``: samples, classes or labels, members.
    categorical
        Whether the classes compete (softmax) or each label stands alone (sigmoid).
    """

    values: Tensor
    categorical: bool


def canonical(logits: Tensor, task: Task, members: bool) -> Canonical:
    """Bring logits into the shape ``(N, C, M)``.

    Parameters
    ----------
    logits
        ``(N, C)``; for ``"binary"`` ``(N,)`` or ``(N, 1)`` (a sigmoid's logit) or ``(N, 2)`` (a softmax).
        With members one axis more, at the end; ``(N, M)`` too for ``"binary"``.
    task
        ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
    members
        Whether the last axis counts the members of an ensemble or draws of a stochastic model.

    Raises
    ------
    InvalidInputError
        For another shape, or a single class.
    """
    shape = tuple(logits.shape)
    if members and (logits.ndim == 3 or (task == "binary" and logits.ndim == 2)):
        values = logits if logits.ndim == 3 else logits[:, None, :]
    elif not members and (logits.ndim == 2 or (task == "binary" and logits.ndim == 1)):
        values = logits[:, :, None] if logits.ndim == 2 else logits[:, None, None]
    else:
        expected = {"multiclass": "N, C", "multilabel": "N, C", "binary": "N, 1 or 2"}[task]
        raise InvalidInputError(
            f"{task} logits {'with' if members else 'without'} members must have shape "
            f"({expected}{', M' if members else ''}); got {shape}"
        )
    classes = values.shape[1]
    if task == "multiclass" and classes < 2:
        raise InvalidInputError(
            f"multiclass logits need 2 classes or more; got {shape}. Is the task 'binary'?"
        )
    if task == "binary" and classes > 2:
        raise InvalidInputError(f"binary logits have 1 or 2 columns; got {shape}. Is the task 'multiclass'?")
    return Canonical(values, task == "multiclass" or (task == "binary" and classes == 2))


def negative_log_likelihood(logits: Canonical, labels: Tensor) -> Tensor:
    """Mean over samples (and labels) of the loss of each member.

    Raises
    ------
    InvalidInputError
        If the labels do not fit the logits.
    """
    values = logits.values
    rows, classes, members = values.shape
    flat = values.permute(0, 2, 1).reshape(rows * members, classes)
    if logits.categorical:
        if labels.ndim != 1 or int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise InvalidInputError(
                f"labels must be class numbers 0 to {classes - 1}, shape ({rows},); got shape "
                f"{tuple(labels.shape)} with values {int(labels.min())} to {int(labels.max())}"
            )
        return functional.cross_entropy(flat, labels.to(flat.device).repeat_interleave(members))
    targets = labels.reshape(rows, -1)
    if targets.shape[1] != classes or not bool(((targets == 0) | (targets == 1)).all()):
        raise InvalidInputError(
            f"labels must be 0 or 1, shape {(rows, classes)}; got shape {tuple(labels.shape)}"
        )
    repeated = targets.to(flat).repeat_interleave(members, 0)
    return functional.binary_cross_entropy_with_logits(flat, repeated)


def fit_temperature(logits: Canonical, labels: Tensor) -> float:
    """The temperature that makes held-out labels most likely (Guo et al. 2017).

    Parameters
    ----------
    logits, labels
        Of samples that the model was not trained on.

    Returns
    -------
    float
        Between 1e-3 and 1e3.

    Raises
    ------
    InvalidInputError
        If the labels do not fit, or no temperature in that range is best: all samples are right (the best
        temperature is 0) or the logits say nothing about the labels (it is infinite).
    """
    from scipy.optimize import minimize_scalar

    exact = Canonical(logits.values.double(), logits.categorical)

    def loss(log_temperature: float) -> float:
        scaled = Canonical(exact.values / torch.exp(torch.tensor(log_temperature)), exact.categorical)
        return float(negative_log_likelihood(scaled, labels))

    # in 1/T the loss is convex, so a bounded search over log T finds its only minimum
    low, high = -6.907755278982137, 6.907755278982137
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    best = float(found.x)
    if loss(best) >= min(loss(low), loss(high)) - 1e-12:  # no minimum inside
        raise InvalidInputError(
            "no temperature between 0.001 and 1000 fits best: the logits separate the labels perfectly, or "
            "say nothing about them; use held-out data, or give temperature= yourself"
        )
    return float(torch.exp(torch.tensor(best, dtype=torch.float64)))
