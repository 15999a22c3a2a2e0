"""The loss of each sample, as far as it has one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection, classification, regression

from selkit.errors import InvalidInputError
from selkit.metrics.losses import has_class_labels, zero_one_loss
from selkit.metrics.selective import ignored_by


def check_loss(loss: Any, rows: int) -> Tensor:
    """The result of a loss function, if it is one number per sample."""
    if isinstance(loss, Tensor) and loss.ndim == 2 and loss.shape[1] == 1:
        loss = loss[:, 0]
    if not isinstance(loss, Tensor) or loss.shape != (rows,):
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InvalidInputError(
            f"loss(preds, target) must give one number per sample, a tensor of shape ({rows},); got {got}. "
            "A mean over the batch cannot be used: ask for reduction='none'"
        )
    return loss if loss.is_floating_point() else loss.float()


class Losses:
    """Losses of the batches of one run.

    Parameters
    ----------
    function
        As the user gave it; without it the 0/1 loss, where targets are class labels.
    metrics
        Of the model: they say whether it classifies, and which target means that there is none.

    Attributes
    ----------
    impossible
        Whether a batch had no loss: then there is no risk-coverage.
    """

    def __init__(self, function: Callable[[Any, Any], Tensor] | None, metrics: Any) -> None:
        self.function = function
        self.impossible = False
        self._ignored = _ignored_by(metrics, function)
        kinds = [kind.__module__ for part in _metrics(metrics) for kind in type(part).__mro__]
        self._classifies = any(kind.startswith(classification.__name__) for kind in kinds)
        self._regresses = not self._classifies and any(kind.startswith(regression.__name__) for kind in kinds)

    def of(self, preds: Any, target: Any, rows: int) -> tuple[Tensor, Tensor] | None:
        """The loss of each sample, NaN where it has none, and which samples have a target, ``(B,)``.

        Parameters
        ----------
        preds, target
            Of a batch.
        rows
            How many samples it has.
        """
        valid = self._valid(target, rows)
        if self.function is not None:
            loss = check_loss(self.function(preds, target), rows)
        elif not self._has_classes(preds, target):
            self.impossible = True
            return None
        else:
            loss = zero_one_loss(preds, target)
        valid = torch.ones(rows, dtype=torch.bool) if valid is None else valid
        valid = valid.to(loss.device)
        return torch.where(valid, loss, torch.nan), valid

    def _has_classes(self, preds: Any, target: Any) -> bool:
        """Whether the 0/1 loss is meant: whole numbers may be counts that are predicted by a regression."""
        if not isinstance(preds, Tensor) or not isinstance(target, Tensor):
            return False
        if self._regresses or not has_class_labels(preds, target):
            return False
        one_each = preds.is_floating_point() and preds.numel() == len(preds)
        if not one_each or self._classifies:
            return True
        outside = (preds < 0) | (preds > 1)
        return not bool(outside.any()) and bool(((target == 0) | (target == 1)).all())

    def _valid(self, target: Any, rows: int) -> Tensor | None:
        """Which samples have a target that is not ignored, ``(B,)``; ``None`` for all."""
        if not self._ignored or not isinstance(target, Tensor) or not target.ndim or len(target) != rows:
            return None
        ignored = torch.zeros_like(target, dtype=torch.bool)
        for value in self._ignored:
            ignored |= target == value
        return ~ignored.reshape(rows, -1).all(1)


def _metrics(metrics: Metric | MetricCollection | None) -> Iterable[Metric]:
    return () if metrics is None else (part for part in metrics.modules() if isinstance(part, Metric))


def _ignored_by(metrics: Any, function: Any) -> set[int]:
    """Targets that mean: this one does not count."""
    inner = getattr(function, "keywords", {}).get("ignore_index")  # of functools.partial
    found = set() if metrics is None else ignored_by(metrics)
    several = inner if isinstance(inner, (list, tuple)) else (inner,)
    found |= {one for one in several if isinstance(one, int) and not isinstance(one, bool)}
    own = getattr(function, "ignore_index", None)
    return found | ({own} if isinstance(own, int) and not isinstance(own, bool) else set())
