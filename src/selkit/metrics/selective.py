"""Any torchmetrics metric, once over all samples, once over the selected and once over the rejected."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics.gather import gather_tensors
from selkit.utils.arrays import as_tensor
from selkit.utils.boundary import public

SCOPES = ("full", "selected", "rejected")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda preds: preds.softmax(1),
}


def activation_of(name: str | Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
    """The function behind the argument ``activation``."""
    if name is None or callable(name):
        return name
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    raise InvalidInputError(
        f"activation must be one of {sorted(_ACTIVATIONS)}, a function or None; got {name!r}"
    )


def _guesses_logits(metric: Metric) -> bool:
    """Whether torchmetrics decides batch by batch if this metric's predictions are logits."""
    from torchmetrics import classification as known

    some = (known.MulticlassPrecisionRecallCurve, known.MulticlassCalibrationError, known.MulticlassHingeLoss)
    for module in metric.modules():  # also inside torchmetrics' wrappers
        if isinstance(module, some):
            return True
        kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith(known.__name__)]
        if any(kind.__name__.startswith(("Binary", "Multilabel")) for kind in kinds):
            return True
    return False


def ignored_by(metric: nn.Module) -> set[int]:
    """Targets that mean to a metric, and what it wraps: this one does not count."""
    found: set[int] = set()
    for part in metric.modules():
        value = getattr(part, "ignore_index", None) if isinstance(part, Metric) else None
        several = value if isinstance(value, (list, tuple)) else (value,)
        found |= {one for one in several if isinstance(one, int) and not isinstance(one, bool)}
    return found


def _copies(base: Metric | MetricCollection, validate: bool) -> MetricCollection:
    """Fresh metrics of our own, that sync safely and share no state by coincidence."""
    if isinstance(base, Metric):
        collection = MetricCollection(copy.deepcopy(base), compute_groups=False)
    else:
        # groups are formed from the states after one update: a first batch with one sample of a subset makes
        # metrics look alike that are not
        collection = MetricCollection(
            {str(name): copy.deepcopy(metric) for name, metric in base.items(keep_base=True)},
            prefix=base.prefix,
            postfix=base.postfix,
            compute_groups=False,
        )
    collection.reset()
    for module in collection.modules():
        if isinstance(module, Metric):
            if module.dist_sync_fn is None:
                module.dist_sync_fn = gather_tensors
            if not validate and isinstance(getattr(module, "validate_args", None), bool):
                module.validate_args = False  # these rows were checked as part of the full batch
    return collection


class SelectiveMetric(Metric):
    """A metric on all samples, on the selected ones and on the rejected ones.

    Parameters
    ----------
    base
        A torchmetrics ``Metric`` or ``MetricCollection``; it is copied, reset and left alone.
    activation
        Applied to the predictions first: ``"sigmoid"``, ``"softmax"`` (over axis 1), or a function.
        torchmetrics takes a batch for logits when one value lies outside [0, 1], which would treat the
        selected rows of one batch unlike the rejected ones; so logits are refused where it would guess,
        unless this says what they are.
    **kwargs
        For :class:`torchmetrics.Metric`.

    Raises
    ------
    InvalidTypeError
        If ``base`` is not a metric.

    Notes
    -----
    The inner metrics are submodules: they move, are saved (after ``persistent(True)``) and sync between
    processes. Each of them must accept any number of rows along the first axis of its arguments. Where
    torchmetrics would guess whether predictions are logits, rows with NaN among them are counted but not
    handed on: one of them would make it take all others for logits.

    Examples
    --------
    >>> from torchmetrics.classification import BinaryAccuracy
    >>> metric = SelectiveMetric(BinaryAccuracy())
    >>> metric.update(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 1]), torch.tensor([True, True, False]))
    >>> {name: round(float(value), 2) for name, value in metric.compute().items()}
    {'full/BinaryAccuracy': 0.67, 'full/count': 3.0, 'selected/BinaryAccuracy': 0.5, 'selected/count': 2.0,
     'rejected/BinaryAccuracy': 1.0, 'rejected/count': 1.0}
    """

    full_state_update = False
    full: MetricCollection
    selected: MetricCollection
    rejected: MetricCollection
    count: Tensor
    usable: Tensor  # of these rows, how many a metric can say something about

    @public
    def __init__(
        self,
        base: Metric | MetricCollection,
        *,
        activation: str | Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dist_sync_fn", gather_tensors)
        super().__init__(**kwargs)
        if not isinstance(base, (Metric, MetricCollection)):
            raise InvalidTypeError(
                f"base must be a torchmetrics Metric or MetricCollection; got {type(base).__name__}"
            )
        self.activation = activation_of(activation)
        for scope in SCOPES:
            setattr(self, scope, _copies(base, validate=scope == "full"))
        self._guesses = [
            str(name) for name, metric in self.full.items(keep_base=True) if _guesses_logits(metric)
        ]
        self.add_state("count", default=torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("usable", default=torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    @public
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch.

        Parameters
        ----------
        *args, **kwargs
            What the inner metrics take, usually ``preds`` and ``target``, and last or by name ``selected``,
            boolean or 0/1, ``(B,)``. Of tensors and lists with ``B`` rows each scope gets its own rows;
            scalars, strings and ``None`` are handed on.

        Raises
        ------
        InvalidInputError
            For rows that do not match, a selection that is not 0/1, or logits as the class describes.
        InvalidTypeError
            If there is no selection.
        """
        if "selected" in kwargs:
            selected = kwargs.pop("selected")
        elif args:
            *args, selected = args  # type: ignore[assignment]
        else:
            raise InvalidTypeError(
                "update needs what the metric takes, and selected, (B,): which rows were accepted"
            )
        mask = _as_mask(selected)
        values = [*args, *kwargs.values()]
        _check_rows(values, len(mask))
        if self.activation is not None and values:
            values[0] = self.activation(values[0])
        elif self._guesses and values:
            self._refuse_logits(values[0])
        rows = (None, mask.nonzero()[:, 0], (~mask).nonzero()[:, 0])
        counts = [len(mask) if index is None else len(index) for index in rows]
        self.count.add_(torch.tensor(counts, device=self.count.device))
        for scope, index, n in zip(SCOPES, rows, counts, strict=True):
            if not n:
                continue
            mine = values if index is None or n == len(mask) else [_rows(v, index, len(mask)) for v in values]
            decidable = self._decidable(mine, n)
            if decidable is None:
                continue
            self.usable[SCOPES.index(scope)] += self._usable(decidable)
            named = dict(zip(kwargs, decidable[len(args) :], strict=True))
            try:
                getattr(self, scope).update(*decidable[: len(args)], **named)
            # a metric of another library refuses what it does not take in its own words
            except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
                raise InvalidInputError(
                    f"{type(getattr(self, scope)).__name__} does not take these values: {error}"
                ) from error

    def _usable(self, values: list[Any]) -> int:
        """How many rows have a target that some metric does not ignore."""
        target = values[1] if len(values) > 1 else None
        rows = next(
            (len(v) for v in values if isinstance(v, (list, tuple)) or (isinstance(v, Tensor) and v.ndim)), 1
        )
        ignored = [ignored_by(metric) for metric in self.full.values()]
        always = set.intersection(*ignored) if ignored else set()
        if not always or not isinstance(target, Tensor) or not target.ndim:
            return rows
        known = torch.ones_like(target, dtype=torch.bool)
        for value in always:
            known &= target != value
        return int(known.reshape(len(target), -1).any(1).sum())

    def _decidable(self, values: list[Any], rows: int) -> list[Any] | None:
        """Without rows whose prediction is NaN, for metrics that would then take all others for logits."""
        preds = values[0] if values else None
        if not self._guesses or not isinstance(preds, Tensor) or not preds.is_floating_point():
            return values
        bad = preds.detach().isnan().reshape(rows, -1).any(1)
        if not bool(bad.any()):
            return values
        index = (~bad).nonzero()[:, 0]
        return [_rows(value, index, rows) for value in values] if len(index) else None

    def _refuse_logits(self, preds: Any) -> None:
        if not isinstance(preds, Tensor) or not preds.is_floating_point() or not preds.numel():
            return
        low, high = torch.aminmax(preds.detach())
        if bool((low < 0) | (high > 1)):
            raise InvalidInputError(
                f"preds has values from {float(low):.4g} to {float(high):.4g}, so they are logits, and "
                f"torchmetrics' {', '.join(self._guesses)} would guess for each batch and subset whether "
                "they are; pass activation='sigmoid' (or 'softmax'), or predict probabilities"
            )

    def compute(self) -> dict[str, Any]:
        """Every metric of every scope.

        Returns
        -------
        dict of str to Tensor
            ``full/<name>``, ``selected/<name>``, ``rejected/<name>``, and ``<scope>/count``, the number of
            samples. Without samples that a metric can use (all have NaN, or a target that it ignores) it is
            NaN, of the shape that it has on all samples.
        """
        values: dict[str, Any] = {}
        template: dict[str, Any] = {}
        for scope, count, usable in zip(SCOPES, self.count.tolist(), self.usable.tolist(), strict=True):
            metrics: MetricCollection = getattr(self, scope)
            if usable:
                found = _computed(metrics)
            else:
                names = template or dict.fromkeys(map(str, metrics.keys()), self.count.float()[0])
                found = {name: _nan_like(value) for name, value in names.items()}
            template = template or found
            values |= {f"{scope}/{name}": value for name, value in found.items()}
            values[f"{scope}/count"] = torch.tensor(float(count), device=self.device)
        return values

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add a batch and return the values of this batch alone, of this process."""
        self.update(*args, **kwargs)
        batch = copy.deepcopy(self)
        batch.reset()
        for module in batch.modules():
            if isinstance(module, Metric):
                module.sync_on_compute = False
                module._to_sync = self.dist_sync_on_step
        batch.update(*args, **kwargs)
        values: dict[str, Any] = batch.compute()
        return values

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        for scope in SCOPES:
            getattr(self, scope).reset()

    def persistent(self, mode: bool = False) -> None:
        """Whether the states of this metric and of the inner ones are part of ``state_dict``."""
        super().persistent(mode)
        for scope in SCOPES:
            getattr(self, scope).persistent(mode)

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Set the dtype of the inner metrics; counts keep theirs."""
        for scope in SCOPES:
            getattr(self, scope).set_dtype(dst_type)
        return self


def _as_mask(selected: Any) -> Tensor:
    mask = as_tensor(selected, "selected")
    if mask.ndim == 2 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 1:
        raise InvalidInputError(
            f"selected must say for each row whether it was accepted, shape (B,); got {tuple(mask.shape)}"
        )
    if mask.dtype == torch.bool:
        return mask
    chosen = mask == 1
    if not bool((chosen | (mask == 0)).all()):
        raise InvalidInputError(
            "selected must be boolean or 0/1; it holds other values. If these are scores, pass "
            "score <= threshold"
        )
    return chosen


def _check_rows(values: Sequence[Any], rows: int) -> None:
    for position, value in enumerate(values):
        if isinstance(value, Tensor) and value.ndim and value.shape[0] != rows:
            raise InvalidInputError(
                f"argument {position} has {value.shape[0]} rows, but selected has {rows}; the first axis of "
                "every tensor is the batch"
            )
        if isinstance(value, (list, tuple)) and len(value) != rows:
            raise InvalidInputError(
                f"argument {position} has {len(value)} entries, but selected has {rows}: one per sample"
            )


def _rows(value: Any, index: Tensor, rows: int) -> Any:
    if isinstance(value, Tensor) and value.ndim:
        return value[index.to(value.device)]
    if isinstance(value, (list, tuple)) and len(value) == rows:
        return [value[i] for i in index.tolist()]
    return value


def _computed(metrics: MetricCollection) -> dict[str, Any]:
    with warnings.catch_warnings():
        # in a process group this process may have no samples of a subset that others have
        warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*", UserWarning)
        values: dict[str, Any] = metrics.compute()
    return values


def _nan_like(value: Any) -> Any:
    if isinstance(value, Tensor):
        floating = value if value.is_floating_point() else value.float()
        return torch.full_like(floating, torch.nan)
    if isinstance(value, dict):
        return {name: _nan_like(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_like(part) for part in value]
    return value
