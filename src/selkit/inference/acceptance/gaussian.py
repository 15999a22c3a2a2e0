"""Mahalanobis distances to class means, along a line: quadratics."""

from __future__ import annotations

import math

import numpy as np

from selkit.inference.acceptance.neighbors import Affine, Balls, chunks, joined, numbers
from selkit.inference.acceptance.sets import ScoreSet, register
from selkit.inference.acceptance.solve import quadratic_below
from selkit.inference.acceptance.spans import Floats, Index, Spans, covered
from selkit.scores.gaussian import GaussianScore, RelativeMahalanobisScore


def _whitened(score: GaussianScore) -> Affine:
    return Affine(numbers(score.center), numbers(score.whitener().dense()))


@register(GaussianScore)
class GaussianSet(ScoreSet):
    """The nearest class mean is within a radius: the union of balls around the means.

    Parameters
    ----------
    score
        Fitted.
    """

    def __init__(self, score: GaussianScore) -> None:
        self.whiten = _whitened(score)
        self.balls = Balls(numbers(score.means))

    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold."""
        radius = math.sqrt(threshold) if threshold >= 0 else -1.0
        return self.balls.within(self.whiten(start), self.whiten(stop), radius, 1)


@register(RelativeMahalanobisScore)
class RelativeSet(ScoreSet):
    """A quadratic for each class, of which one must be low: the difference of two squared distances.

    Parameters
    ----------
    score
        Fitted.
    """

    def __init__(self, score: RelativeMahalanobisScore) -> None:
        self.near, self.far = _whitened(score), _whitened(score.background)
        self.means, self.mean = numbers(score.means), numbers(score.background.means)

    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold."""
        near, far = (self.near(start), self.near(stop)), (self.far(start), self.far(stop))
        parts = [
            (rows, self._below(near[0][rows], near[1][rows], far[0][rows], far[1][rows], threshold))
            for rows in chunks(len(start), self.means.size)
        ]
        return joined(parts, len(start))

    def _below(self, near: Floats, near_stop: Floats, far: Floats, far_stop: Floats, limit: float) -> Spans:
        count = len(near)
        offset = near[:, None] - self.means
        step = np.broadcast_to((near_stop - near)[:, None], offset.shape)
        away, away_step = far - self.mean, far_stop - far

        def gap(p: Floats, q: Floats, r: Floats, s: Floats) -> Floats:
            inner = np.einsum("bcd,bcd->bc", p, q) - np.einsum("bd,bd->b", r, s)[:, None]
            return np.asarray(inner, dtype=np.float64).ravel()

        row: Index = np.repeat(np.arange(count, dtype=np.int64), len(self.means))
        a = gap(step, step, away_step, away_step)
        b = 2 * gap(offset, step, away, away_step)
        return covered(quadratic_below(row, a, b, gap(offset, offset, away, away) - limit, count))
