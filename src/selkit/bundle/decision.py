"""From scores to decisions: one threshold, one for each group, or one for each class.

Two computations of one score differ in their last digits, and a calibrated threshold often is the score of a
calibration sample, which then must be selected here too. A score that lies above its threshold by no more
than such digits counts as equal to it, and is returned as the threshold itself: ``selected`` always is
``score <= threshold`` of what is returned. How much that is never reaches the next calibration score.

A threshold that keeps a risk lies just below a calibration score, which it must reject: there, a score that
lies below that calibration score by no more than such digits counts as equal to that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import helper
from torch import Tensor

from selkit.bundle.emitter import Array, Emitter, as_array
from selkit.bundle.registry import emit_score
from selkit.errors import InvalidInputError, NotAvailableError, NotFittedError
from selkit.scores.base import UncertaintyScore
from selkit.scores.classwise import ClassWiseScore

DIGITS = 2.0**-22  # two units in the last place of float32: what any two computations may differ by
AGREED = 1e-5  # relative: within this, scores here and in Python agree


@dataclass(frozen=True)
class Limit:
    """What scores are compared with.

    Attributes
    ----------
    name
        Of the value, ``()``, or one for each group or class.
    calibrated
        The default.
    slack
        How far above it a score still counts as equal to it.
    rejected
        The calibration score just above it, infinity where there is none.
    floor
        From which score on a score counts as equal to that one.
    groups
        Which groups or classes those are; empty for a single threshold.
    """

    name: str
    calibrated: Array
    slack: Array
    rejected: Array
    floor: Array
    groups: tuple[int, ...]

    @classmethod
    def of(cls, name: str, score: UncertaintyScore, values: Array, groups: tuple[int, ...]) -> Limit:
        """The limit that a calibrated score has, in the type of ``values``."""
        known, slack = _known(score), slack_of(score, values)
        exact = values.astype(np.float64)[..., None]
        above = np.where(known > exact, known, np.inf).min(-1, initial=np.inf)
        below = np.where(known <= exact, known, -np.inf).max(-1, initial=-np.inf)
        exact = exact[..., 0]
        finite = np.where(np.isfinite(exact), exact, 0.0)
        near = above <= finite + DIGITS * np.abs(finite)
        rejects = near & (below < finite) & np.isfinite(exact) & np.isfinite(above)
        gap = np.minimum(
            _most(known, finite), np.where(rejects, above, 0.0) / 2 - np.where(rejects, below, 0.0) / 2
        )
        floor = np.where(rejects, np.where(rejects, above, 0.0) - gap, np.inf).astype(values.dtype)
        # rounded to the type of the values, it must not become the threshold itself
        least = np.nextafter(values, np.asarray(np.inf, dtype=values.dtype))
        rejected = np.where(rejects, np.maximum(above.astype(values.dtype), least), np.inf)
        slack = np.where(rejects, 0.0, slack).astype(values.dtype)
        return cls(name, values, slack, rejected.astype(values.dtype), floor, groups)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of score and threshold: that which the score has in Python."""
        return self.calibrated.dtype


def calibrated(score: UncertaintyScore) -> tuple[Tensor, tuple[int, ...]]:
    """The threshold of a score, and the groups or classes it belongs to.

    Raises
    ------
    NotFittedError
        Without a fit or a threshold.
    """
    score._check_fitted()
    threshold = score._check_calibrated().detach().cpu()
    names = score.threshold_groups
    if isinstance(score, ClassWiseScore):
        if names is None or score.classes is None:
            raise NotFittedError(
                f"{type(score).__name__} has no threshold for each class: call calibrate(...)"
            )
        classes = score.classes.cpu()
        return threshold[torch.searchsorted(names.cpu(), classes)], tuple(classes.tolist())
    return threshold, () if names is None else tuple(names.cpu().tolist())


def decide(
    g: Emitter, score: UncertaintyScore, features: str, limit: Limit, prediction: str | None
) -> tuple[str, str]:
    """Append a score and its decision, and return the names of both.

    Parameters
    ----------
    g
        Where to append.
    score
        Fitted and calibrated.
    features
        Name of the embedding or the logits, in the type that the score sees in Python.
    limit
        What it is compared with.
    prediction
        Name of the logits from which groups or classes follow.
    """
    groups = limit.groups
    if prediction is not None and not groups:
        raise InvalidInputError(
            f"prediction={prediction!r} is of use for thresholds of groups or classes only; "
            f"{type(score).__name__} has one threshold"
        )
    if isinstance(score, ClassWiseScore):
        return _of_classes(g, score, features, limit, prediction)
    value = g.cast(emit_score(g, score, features), limit.dtype)
    if not groups:
        return compared(g, value, limit.name, _slack(g, limit), _floor(g, limit))
    if prediction is None:
        raise InvalidInputError(
            f"{type(score).__name__} has one threshold for each of {len(groups)} groups: say which value "
            "of the model holds the logits whose argmax is the group, prediction="
        )
    member = predicted(g, prediction, groups, labels=None)
    place = g.op("ArgMax", g.cast(member, np.int32), axis=1, keepdims=0)
    own, slack = (g.op("Gather", values, place, axis=0) for values in (limit.name, _slack(g, limit)))
    edge = _floor(g, limit)
    return compared(g, value, own, slack, edge and tuple(g.op("Gather", v, place, axis=0) for v in edge))


def slack_of(score: UncertaintyScore, limits: Array) -> Array:
    """How far above the calibrated thresholds a score still counts as equal to them.

    Where the threshold is a calibration score, up to the precision to which scores agree, but not half way to
    the next calibration score; elsewhere a few units in the last place.

    Parameters
    ----------
    score
        Calibrated.
    limits
        Its threshold, or one for each group or class.
    """
    finite = np.where(np.isfinite(limits), limits, 0.0).astype(np.float64)
    least = DIGITS * np.abs(finite)
    known = _known(score)
    if not len(known):
        return least.astype(limits.dtype)
    most = _most(known, finite)
    tied = (np.abs(known - finite[..., None]) <= least[..., None]).any(-1)
    above = np.where(known > (finite + least)[..., None], known, np.inf).min(-1)
    room = np.maximum(np.minimum(most, (above - finite) / 2), 0.0)
    found: Array = np.where(tied, room, np.minimum(least, room)).astype(limits.dtype)
    return found


def _known(score: UncertaintyScore) -> Array:
    """The calibration scores, those next to the thresholds also where they were given by hand."""
    held = [as_array(t).ravel() for t in (score.calibration_scores, score.anchors) if t is not None]
    known = np.unique(np.concatenate([values.astype(np.float64) for values in held])) if held else np.zeros(0)
    found: Array = known[np.isfinite(known)]
    return found


def _most(known: Array, values: Array) -> Array:
    """How much two computations of scores of this size may differ."""
    found: Array = AGREED * np.maximum(np.abs(values), np.median(np.abs(known)) if len(known) else 0.0)
    return found


Edge: TypeAlias = tuple[str, ...] | None  # a limit's floor and rejected score, where some are finite


def compared(g: Emitter, score: str, limit: str, slack: str, edge: Edge = None) -> tuple[str, str]:
    """Scores, with what rounding alone puts above the limit at the limit, and which are at most the limit."""
    near = g.op("LessOrEqual", score, g.op("Add", limit, slack))
    value = g.op("Where", near, g.op("Min", score, limit), score)
    if edge is not None:
        floor, rejected = edge
        value = g.op("Where", g.op("Less", score, floor), value, g.op("Max", score, rejected))
    return value, g.op("LessOrEqual", value, limit)


def _slack(g: Emitter, limit: Limit) -> str:
    """The slack of the threshold in use: that of the calibrated one, or what any threshold has."""
    usual = g.op("Mul", g.op("Abs", limit.name), np.asarray(DIGITS, dtype=limit.dtype))
    return g.op("Where", g.op("Equal", limit.name, limit.calibrated), limit.slack, usual)


def _floor(g: Emitter, limit: Limit) -> Edge:
    """Floor and rejected score of the calibrated threshold, if it is in use and rejects one just above it."""
    if not np.isfinite(limit.rejected).any():
        return None
    same = g.op("Equal", limit.name, limit.calibrated)
    none = np.asarray(np.inf, dtype=limit.dtype)
    floor = g.op("Where", same, limit.floor, none)
    return floor, g.op("Where", same, np.where(np.isfinite(limit.rejected), limit.rejected, 0), limit.name)


def score_dtype(score: UncertaintyScore, features: str, g: Emitter) -> np.dtype[Any]:
    """NumPy's type of what ``score.score`` returns for these features."""
    own = helper.tensor_dtype_to_np_dtype(g.kind(features))
    return own if score.precision is None else as_array(score.precision).dtype


def predicted(g: Emitter, logits: str, names: tuple[int, ...], labels: int | None) -> str:
    """Which groups or classes each sample belongs to, ``(N, C)``, as :class:`WithPrediction` finds them.

    Raises
    ------
    InvalidInputError
        If the value is not ``(N, columns)``.
    NotAvailableError
        If a class can be predicted that has no threshold.
    """
    shape = g.shape(logits)
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise InvalidInputError(
            f"prediction={logits!r} has shape {shape}; it must name logits of shape (samples, classes)"
        )
    columns = shape[1]
    if labels is not None:
        if columns != labels:
            raise InvalidInputError(
                f"prediction={logits!r} has {columns} columns; the score was fitted on {labels} labels"
            )
        return g.op("Greater", g.double(logits), g.number(0.0))
    possible = set(range(max(columns, 2)))
    if not possible <= set(names):
        raise NotAvailableError(
            f"prediction={logits!r} can be one of {len(possible)} classes, but "
            f"{sorted(possible - set(names))} "
            "have no references or no threshold; the file could not decide about them"
        )
    if columns == 1:
        place = g.cast(g.op("Greater", g.double(logits), g.number(0.0)), np.int64)
    else:
        place = g.op("ArgMax", logits, axis=1, keepdims=1)
    return g.op("Equal", place, np.asarray(names, dtype=np.int64))


def _of_classes(
    g: Emitter, score: ClassWiseScore, features: str, limit: Limit, prediction: str | None
) -> tuple[str, str]:
    columns = []
    for one in score.each.children():
        if not isinstance(one, UncertaintyScore):
            raise NotFittedError(f"{type(score).__name__} is not fitted yet: call fit(...) first")
        columns.append(g.op("Unsqueeze", emit_score(g, one, features), np.asarray([1], dtype=np.int64)))
    matrix = g.cast(g.op("Concat", *columns, axis=1), limit.dtype)
    value, accepted = compared(g, matrix, limit.name, _slack(g, limit), _floor(g, limit))
    numbers = np.arange(len(columns), dtype=np.int64)
    nearest = g.op("Equal", g.op("ArgMin", matrix, axis=1, keepdims=1), numbers)
    member = nearest
    if prediction is not None:
        labels = len(columns) if bool(score.multilabel) else None
        classes = () if score.classes is None else tuple(score.classes.tolist())
        made = predicted(g, prediction, classes, labels)
        some = g.op("Equal", _any(g, made), np.asarray(1, dtype=np.int32))
        member = g.op("Or", made, g.op("And", nearest, g.op("Not", some)))
    combined = _combined(g, value, member, score.aggregate, limit.dtype)
    fine = g.cast(g.op("Or", accepted, g.op("Not", member)), np.int32)
    selected = g.op("Equal", g.reduce("ReduceMin", fine, [1]), np.asarray(1, dtype=np.int32))
    return combined, selected


def _any(g: Emitter, flags: str) -> str:
    return g.reduce("ReduceMax", g.cast(flags, np.int32), [1], keepdims=True)


def _combined(g: Emitter, matrix: str, member: str, aggregate: str, dtype: np.dtype[Any]) -> str:
    """One score from those of the classes that a sample belongs to: always one, or more."""
    if aggregate == "mean":
        total = g.reduce("ReduceSum", g.op("Where", member, matrix, np.asarray(0, dtype=dtype)), [1])
        return g.op("Div", total, g.reduce("ReduceSum", g.cast(member, dtype), [1]))
    far = np.asarray(-np.inf if aggregate == "max" else np.inf, dtype=dtype)
    reduction = "ReduceMax" if aggregate == "max" else "ReduceMin"
    return g.reduce(reduction, g.op("Where", member, matrix, far), [1])
