"""Scores of logits as ONNX nodes, float64 inside: ``z`` has the shape (samples, classes, members)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from selkit.bundle.emitter import Emitter
from selkit.bundle.registry import emits
from selkit.errors import InvalidInputError
from selkit.scores.logits import (
    EnergyScore,
    EnsembleLogitScore,
    EntropyScore,
    LogitScore,
    MarginScore,
    MaxLogitScore,
    MutualInformationScore,
    PointwiseLogitScore,
    PredictiveVarianceScore,
    SoftmaxScore,
)

Formula: TypeAlias = Callable[[Emitter, str], str]


def axis(place: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """One axis, as operators take it."""
    return np.asarray([place], dtype=np.int64)


@emits(
    EnergyScore,
    SoftmaxScore,
    MaxLogitScore,
    EntropyScore,
    MarginScore,
    MutualInformationScore,
    PredictiveVarianceScore,
)
def logit_score(g: Emitter, score: LogitScore, features: str) -> str:
    """Append a score of logits."""
    z, members, categorical = canonical(g, score, features)
    z = g.op("Div", z, g.number(score.T)) if score.T != 1 else z
    if isinstance(score, PointwiseLogitScore):
        return _pointwise(g, score, z, categorical)
    if isinstance(score, EnsembleLogitScore) and members < 2:
        raise InvalidInputError(f"{type(score).__name__} compares members; the logits have {members}")
    if isinstance(score, MutualInformationScore):
        each = _mutual_information(g, z, members, categorical)
    else:
        each = _variance(g, z, categorical)
    return each if categorical else g.reduce("ReduceMax", each, [1])


def canonical(g: Emitter, score: LogitScore, logits: str) -> tuple[str, int, bool]:
    """Logits as ``(N, C, M)`` in float64, M, and whether classes compete.

    Raises
    ------
    InvalidInputError
        If the value in the model has another shape than the score takes.
    """
    shape = g.shape(logits)
    if shape is None or None in shape[1:]:
        raise InvalidInputError(
            f"the shape of the logits {logits!r} is {shape} as far as the model says; classes and members "
            "must be fixed numbers"
        )
    z, rank, binary = g.double(logits), len(shape), score.task == "binary"
    sizes: tuple[int | None, int | None]
    if score.per_member and rank == 2 and binary:
        z, sizes = g.op("Unsqueeze", z, axis(1)), (1, shape[1])
    elif not score.per_member and rank == 1 and binary:
        z, sizes = g.op("Unsqueeze", z, np.asarray([1, 2], dtype=np.int64)), (1, 1)
    elif not score.per_member and rank == 2:
        z, sizes = g.op("Unsqueeze", z, axis(2)), (shape[1], 1)
    elif score.per_member and rank == 3:
        sizes = (shape[1], shape[2])
    else:
        raise InvalidInputError(
            f"the logits {logits!r} have shape {shape}, which {score.task} logits "
            f"{'with' if score.per_member else 'without'} members cannot have"
        )
    classes, members = int(sizes[0] or 0), int(sizes[1] or 0)
    fits = {"multiclass": classes >= 2, "binary": classes in (1, 2), "multilabel": classes >= 1}
    if not fits[score.task] or (score.width is not None and classes != int(score.width)):
        wanted = f"{int(score.width)} classes" if score.width is not None else f"{score.task} logits"
        raise InvalidInputError(
            f"the logits {logits!r} have shape {shape}, but {type(score).__name__} takes {wanted}; say which "
            "value of the model it was fitted on: embedding="
        )
    return z, members, score.task == "multiclass" or (binary and classes == 2)


def _pointwise(g: Emitter, score: PointwiseLogitScore, z: str, categorical: bool) -> str:
    kind = type(score)
    if categorical:
        each = _CATEGORICAL[kind](g, z)
    else:
        energy = kind is EnergyScore and score.task == "binary"
        each = _symmetric_energy(g, z) if energy else _BERNOULLI[kind](g, z)
        each = g.reduce("ReduceMax" if score.over_labels == "max" else "ReduceSum", each, [1])
    if kind is EnergyScore and score.T != 1:
        each = g.op("Mul", each, g.number(score.T))
    return g.reduce("ReduceMean", each, [1])


def _log_softmax(g: Emitter, z: str) -> str:
    return g.op("Sub", z, g.reduce("ReduceLogSumExp", z, [1], keepdims=True))


def _negative_energy(g: Emitter, z: str) -> str:
    return g.op("Neg", g.reduce("ReduceLogSumExp", z, [1]))


def _softplus(g: Emitter, z: str) -> str:
    """``log(1 + exp(z))`` from operators that have float64 kernels everywhere."""
    rest = g.op("Log", g.op("Add", g.op("Exp", g.op("Neg", g.op("Abs", z))), g.number(1.0)))
    return g.op("Add", g.op("Max", z, g.number(0.0)), rest)


def _symmetric_energy(g: Emitter, z: str) -> str:
    """``-log(2 cosh(z / 2))``: a single logit z as the pair (-z/2, z/2)."""
    size = g.op("Abs", z)
    half = g.op("Mul", size, g.number(0.5))
    return g.op("Neg", g.op("Add", half, _softplus(g, g.op("Neg", size))))


def _probability(g: Emitter, z: str) -> str:
    return g.op("Neg", g.op("Exp", g.reduce("ReduceMax", _log_softmax(g, z), [1])))


def _entropy(g: Emitter, z: str) -> str:
    logs = _log_softmax(g, z)
    return g.op("Neg", g.reduce("ReduceSum", g.op("Mul", g.op("Exp", logs), logs), [1]))


def _binary_entropy(g: Emitter, z: str) -> str:
    size = g.op("Abs", z)
    below = g.op("Neg", size)
    return g.op("Add", _softplus(g, below), g.op("Mul", size, g.op("Sigmoid", below)))


def _margin(g: Emitter, z: str) -> str:
    top, _ = g.top(z, 2, largest=True)
    first, second = (g.op("Gather", top, np.asarray(place), axis=1) for place in (0, 1))
    return g.op("Sub", second, first)


def _minus_size(g: Emitter, z: str) -> str:
    return g.op("Neg", g.op("Abs", z))


_CATEGORICAL: dict[type, Formula] = {
    EnergyScore: _negative_energy,
    SoftmaxScore: _probability,
    MaxLogitScore: lambda g, z: g.op("Neg", g.reduce("ReduceMax", z, [1])),
    EntropyScore: _entropy,
    MarginScore: _margin,
}
_BERNOULLI: dict[type, Formula] = {
    EnergyScore: lambda g, z: g.op("Neg", _softplus(g, z)),
    SoftmaxScore: lambda g, z: g.op("Neg", g.op("Sigmoid", g.op("Abs", z))),
    MaxLogitScore: _minus_size,
    EntropyScore: _binary_entropy,
    MarginScore: _minus_size,
}


def _mutual_information(g: Emitter, z: str, members: int, categorical: bool) -> str:
    if categorical:
        logs = _log_softmax(g, z)
        mean = g.op("Sub", g.reduce("ReduceLogSumExp", logs, [2]), g.number(math.log(members)))
        return g.op("Sub", _entropy(g, mean), g.reduce("ReduceMean", _entropy(g, z), [1]))
    mean = g.reduce("ReduceMean", g.op("Sigmoid", z), [2])
    other = g.reduce("ReduceMean", g.op("Sigmoid", g.op("Neg", z)), [2])
    together = g.op("Add", _x_log_x(g, mean), _x_log_x(g, other))
    return g.op("Sub", g.op("Neg", together), g.reduce("ReduceMean", _binary_entropy(g, z), [2]))


def _x_log_x(g: Emitter, x: str) -> str:
    """``x log x``, 0 at 0."""
    safe = g.op("Max", x, g.number(float(np.finfo(np.float64).tiny)))
    return g.op("Mul", x, g.op("Log", safe))


def _variance(g: Emitter, z: str, categorical: bool) -> str:
    chances = g.op("Exp", _log_softmax(g, z)) if categorical else g.op("Sigmoid", z)
    centred = g.op("Sub", chances, g.reduce("ReduceMean", chances, [2], keepdims=True))
    spread = g.reduce("ReduceMean", g.op("Mul", centred, centred), [2])
    return g.reduce("ReduceSum", spread, [1]) if categorical else spread
