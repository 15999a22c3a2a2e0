"""Scores of logits, along a line.

Each is written as a difference of two functions of the logits that are convex along every line: some are
already (a log-sum-exp, a maximum), others become so by adding ``m t^2 / 2`` to both, where m bounds the
second derivative. With R the range of the logits' slopes over the classes (their largest size, for labels
that stand alone), a probability obeys ``|p'| <= R p`` and ``|p''| <= R^2 p``, so an entropy of C classes
bends by at most ``(1 + log C) R^2``, a variance of probabilities by ``8 R^2`` and a sigmoid by
``0.1 R^2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selkit.inference.acceptance.sets import ScoreSet, register
from selkit.inference.acceptance.solve import difference_below
from selkit.inference.acceptance.spans import Floats, Index, Spans
from selkit.scores.logits import (
    EnergyScore,
    EntropyScore,
    LogitScore,
    MarginScore,
    MaxLogitScore,
    MutualInformationScore,
    PredictiveVarianceScore,
    SoftmaxScore,
)
from selkit.scores.tasks import Canonical

Values = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    """A score as ``plus - minus``, functions of logits ``(N, C, M)`` divided by the temperature.

    Attributes
    ----------
    plus, minus
        ``None`` for zero.
    bend
        Both are convex once ``bend R^2 t^2 / 2`` is added.
    """

    plus: Values | None
    minus: Values | None
    bend: float = 0.0


def _negated(score: LogitScore, categorical: bool, bend: float = 0.0) -> Split:
    return Split(None, lambda z: -score._compute(Canonical(z, categorical), score.T), bend)


def _lowest(size: Values, labels: int, bend: float) -> Split:
    """The negated smallest of convex functions, one a label: the sum of the others minus that of all."""

    def others(z: Tensor) -> Tensor:
        each = size(z)
        return (each.sum(1) - each.amin(1)).mean(1)

    return Split(others, lambda z: size(z).sum(1).mean(1), bend * labels)


def _split(score: LogitScore, categorical: bool, classes: int) -> Split:
    """The score of this class as a difference of convex functions."""
    if isinstance(score, EnergyScore):
        return _negated(score, categorical)
    if isinstance(score, EntropyScore | MutualInformationScore | PredictiveVarianceScore):
        entropy = 1.0 + math.log(classes if categorical else 2)
        bend = {EntropyScore: entropy, MutualInformationScore: 2 * entropy, PredictiveVarianceScore: 8.0}
        return Split(lambda z: score._compute(Canonical(z, categorical), score.T), None, bend[type(score)])
    if not categorical:
        if isinstance(score, SoftmaxScore):
            return _lowest(lambda z: z.abs().sigmoid(), classes, 0.1)
        return _lowest(torch.abs, classes, 0.0)
    if isinstance(score, MarginScore):
        return Split(lambda z: z.topk(2, dim=1).values.sum(1).mean(1), lambda z: 2 * z.amax(1).mean(1))
    return _negated(score, categorical, 1.0 if isinstance(score, SoftmaxScore) else 0.0)


@register(
    EnergyScore,
    EntropyScore,
    MarginScore,
    MaxLogitScore,
    MutualInformationScore,
    PredictiveVarianceScore,
    SoftmaxScore,
)
class LogitSet(ScoreSet):
    """A score of logits, by the score's own formula and torch's derivative of it.

    Parameters
    ----------
    score
        Fitted where it needs to be.
    """

    def __init__(self, score: LogitScore) -> None:
        self.score = score

    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold."""
        with torch.inference_mode(False), torch.enable_grad():  # slopes are torch's derivatives
            return self._below(start, stop, threshold)

    def _below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        first = self.score._canonical(torch.from_numpy(np.ascontiguousarray(start)))
        last = self.score._canonical(torch.from_numpy(np.ascontiguousarray(stop)))
        logits = first.values / self.score.T
        rise = last.values / self.score.T - logits
        split = _split(self.score, first.categorical, logits.shape[1])
        size = rise.amax(1) - rise.amin(1) if first.categorical else rise.abs().amax(1)
        bend = split.bend * size.amax(1).numpy() ** 2

        def parts(t: Floats, rows: Index) -> tuple[Floats, Floats, Floats, Floats]:
            place = torch.from_numpy(rows)
            base, slope = logits[place], rise[place]
            curve, tilt = bend[rows] * t**2 / 2, bend[rows] * t
            plus, plus_slope = _along(split.plus, base, slope, t)
            minus, minus_slope = _along(split.minus, base, slope, t)
            return plus + curve, plus_slope + tilt, minus + curve + threshold, minus_slope + tilt

        return difference_below(parts, len(start))


def _along(function: Values | None, base: Tensor, rise: Tensor, places: Floats) -> tuple[Floats, Floats]:
    """Value and slope of a function on lines."""
    if function is None:
        return np.zeros(len(places)), np.zeros(len(places))
    t = torch.tensor(places, requires_grad=True)
    value = function(base + t[:, None, None] * rise)
    (slope,) = torch.autograd.grad(value.sum(), t)  # no row depends on another one's place
    return value.detach().numpy(), slope.numpy()
