"""Distances to the nearest references, along a line.

The k-th nearest of all references is within a radius exactly where at least k balls around references are
entered: each is one interval (a quadratic), and no order of neighbours is needed. A mean of the k smallest
distances is the sum of all candidates' distances minus that of the largest, both of which are convex. A
reference that is far at the middle of a short piece is far everywhere on it, so few are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selkit.errors import NotAvailableError, NotFittedError
from selkit.inference.acceptance.sets import ScoreSet, register
from selkit.inference.acceptance.solve import difference_below, quadratic_below
from selkit.inference.acceptance.spans import Floats, Index, Mask, Spans, covered
from selkit.scores.neighbors import EuclideanScore, KNNScore, MahalanobisScore
from selkit.scores.pca import TensorPCA

ENTRIES = 2**22
"""Distances of pieces to references that are held at once."""


def numbers(value: Tensor | None) -> Floats:
    """A fitted buffer in double precision."""
    if value is None:
        raise NotFittedError("the score of accepted_by is not fitted yet: call fit(...) first")
    array: Floats = value.detach().cpu().to(torch.float64).numpy()
    return array


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine map ``(x - center) @ matrix`` of rows.

    Attributes
    ----------
    center
        Shape (D,), or ``None`` for the origin.
    matrix
        Shape (D, E), or ``None`` for the identity.
    """

    center: Floats | None = None
    matrix: Floats | None = None

    def __call__(self, x: Floats) -> Floats:
        """Map rows."""
        moved = x if self.center is None else x - self.center
        return moved if self.matrix is None else moved @ self.matrix

    @staticmethod
    def of_projection(projection: TensorPCA | None) -> Affine:
        """The coordinates along principal components."""
        if projection is None:
            return Affine()
        if projection.uses_rff:
            raise NotAvailableError(
                "accepted_by with random Fourier features is not available, because they are cosines of the "
                "embedding, which oscillate along a line; use a linear TensorPCA"
            )
        return Affine(numbers(projection.mean), numbers(projection.components).T)


def chunks(count: int, width: int) -> list[slice]:
    """Cut rows so that a matrix of that many columns stays small."""
    size = max(1, ENTRIES // max(width, 1))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def joined(parts: list[tuple[slice, Spans]], count: int) -> Spans:
    """Put the sets of chunks of rows after each other."""
    if not parts:
        return Spans.where(np.zeros(count, dtype=bool))
    row = [part.row + rows.start for rows, part in parts]
    low, high = [part.low for _, part in parts], [part.high for _, part in parts]
    return Spans(np.concatenate(row), np.concatenate(low), np.concatenate(high), count)


class Balls:
    """Where a line is within a radius of enough points.

    Parameters
    ----------
    points
        Shape (N, D).
    """

    def __init__(self, points: Floats) -> None:
        self.center = points.mean(0)
        self.points = points - self.center
        self.norms = np.einsum("nd,nd->n", self.points, self.points)

    def distances(self, at: Floats) -> tuple[Floats, Floats]:
        """Distance of each row (relative to the center) to each point, and a bound of its rounding error."""
        own = np.einsum("bd,bd->b", at, at)
        squares = self.norms - 2 * at @ self.points.T + own[:, None]
        size = np.sqrt(own) + np.sqrt(self.norms.max())
        # The error of a square is some roundings of the largest term; a root may magnify it.
        error = np.sqrt(16 * (at.shape[1] + 8) * np.finfo(np.float64).eps) * size
        return np.sqrt(np.maximum(squares, 0.0)), error

    def within(self, start: Floats, stop: Floats, radius: float, need: int) -> Spans:
        """Where at least ``need`` points are within ``radius``.

        Parameters
        ----------
        start, stop
            Ends of the pieces, shape (B, D).
        radius
            Finite.
        need
            Between 1 and the number of points.
        """
        count = len(start)
        if radius < 0:
            return Spans.where(np.zeros(count, dtype=bool))
        start, stop = start - self.center, stop - self.center
        parts = [
            (rows, self._within(start[rows], stop[rows], radius, need))
            for rows in chunks(count, len(self.points))
        ]
        return joined(parts, count)

    def _within(self, start: Floats, stop: Floats, radius: float, need: int) -> Spans:
        count = len(start)
        step = stop - start
        distance, error = self.distances((start + stop) / 2)
        reach = np.linalg.norm(step, axis=1) / 2 + error
        surely = distance <= (radius - reach)[:, None]
        missing = need - surely.sum(1)
        maybe = ~surely & (distance <= (radius + reach)[:, None])
        whole = missing <= 0
        maybe[whole | (maybe.sum(1) < missing)] = False
        row, point = np.nonzero(maybe)
        inside = _entered(row, start[row] - self.points[point], step[row], radius, count)
        found = covered(inside, np.maximum(missing, 1))
        return rows_of_both(Spans.where(whole), found)


def _entered(row: Index, offset: Floats, step: Floats, radius: float, count: int) -> Spans:
    """Where ``|offset + t step| <= radius``."""
    length = np.linalg.norm(offset, axis=1)
    a = np.einsum("md,md->m", step, step)
    b = 2 * np.einsum("md,md->m", offset, step)
    return quadratic_below(row.astype(np.int64), a, b, (length - radius) * (length + radius), count)


def rows_of_both(first: Spans, second: Spans) -> Spans:
    """Join sets that share no row."""
    return Spans(
        np.concatenate([first.row, second.row]),
        np.concatenate([first.low, second.low]),
        np.concatenate([first.high, second.high]),
        first.count,
    )


class Lengths:
    """``|offset + t step|`` and its slope, for many lines, without cancellation.

    Parameters
    ----------
    offset, step
        Shape (..., D).
    """

    def __init__(self, offset: Floats, step: Floats) -> None:
        speed = np.linalg.norm(step, axis=-1)
        inner = np.einsum("...d,...d->...", offset, step)
        self.speed = speed
        with np.errstate(divide="ignore", invalid="ignore"):
            self.nearest = np.where(speed > 0, -inner / speed**2, 0.0)
        self.least = np.linalg.norm(offset + self.nearest[..., None] * step, axis=-1)

    def at(self, t: Floats, rows: Index) -> tuple[Floats, Floats]:
        """Lengths and slopes at ``t`` (of shape (M,)) of the lines in ``rows``."""
        t = t.reshape(-1, *(1,) * (self.speed.ndim - 1))
        speed = self.speed[rows]
        away = speed * (t - self.nearest[rows])
        length = np.hypot(away, self.least[rows])
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(length > 0, speed * away / length, 0.0)
        return length, slope


@register(EuclideanScore, MahalanobisScore)
class EuclideanSet(ScoreSet):
    """Order statistics and means of Euclidean distances to the nearest references.

    Parameters
    ----------
    score
        Fitted.
    """

    def __init__(self, score: KNNScore) -> None:
        self.project = Affine.of_projection(score.projection)
        self.whiten = Affine()
        if isinstance(score, MahalanobisScore):
            self.whiten = Affine(numbers(score.mean), numbers(score.whitener().dense()))
        self.balls = Balls(references_of(score))
        self.k, self.stat = score.k, score.stat

    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold."""
        start, stop = (self.whiten(self.project(end)) for end in (start, stop))
        if self.stat != "mean" or self.k == 1:
            return self.balls.within(start, stop, threshold, order_of(self.stat, self.k))
        start, stop = start - self.balls.center, stop - self.balls.center
        parts = [
            (rows, self._mean_below(start[rows], stop[rows], threshold))
            for rows in chunks(len(start), len(self.balls.points))
        ]
        return joined(parts, len(start))

    def _mean_below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        step = stop - start
        distance, error = self.balls.distances((start + stop) / 2)
        reach = np.linalg.norm(step, axis=1) / 2 + error
        near = np.partition(distance, self.k - 1, axis=1)[:, : self.k]
        # A mean of distances changes no faster than the point moves.
        mean = near.mean(1)
        whole = mean + reach <= threshold
        rest = np.flatnonzero(~whole & (mean - reach <= threshold))
        possible = distance[rest] <= (near.max(1) + 2 * reach)[rest, None]
        point, valid = candidates(possible)
        lengths = Lengths(start[rest, None] - self.balls.points[point], step[rest, None])

        def parts(t: Floats, rows: Index) -> tuple[Floats, Floats, Floats, Floats]:
            length, slope = lengths.at(t, rows)
            used = valid[rows]
            ordered = np.where(used, length, np.inf)
            chosen = np.argpartition(ordered, self.k - 1, axis=1)[:, : self.k]
            total, bend = (np.where(used, part, 0.0).sum(1) / self.k for part in (length, slope))
            small = np.take_along_axis(length, chosen, 1).mean(1) - threshold
            steep = np.take_along_axis(slope, chosen, 1).mean(1)
            return total, bend, total - small, bend - steep

        found = difference_below(parts, len(rest)).moved(rest.astype(np.int64), len(start))
        return rows_of_both(Spans.where(whole), found)


def candidates(possible: Mask) -> tuple[Index, Mask]:
    """Columns that are set in each row, padded to the longest row, and which entries are no padding."""
    width = int(possible.sum(1).max(initial=1))
    order = np.argsort(~possible, axis=1, kind="stable")[:, :width].astype(np.int64)
    return order, np.take_along_axis(possible, order, 1)


def order_of(stat: str, k: int) -> int:
    """Which of the nearest distances an order statistic is, from 1."""
    return {"max": k, "min": 1, "median": (k - 1) // 2 + 1, "mean": 1}[stat]


def references_of(score: KNNScore) -> Floats:
    """The references of a score where their distance is Euclidean, in double precision."""
    kind = type(score).__name__
    if score.graph is not None:
        raise NotAvailableError(
            f"accepted_by={kind}(index='faiss') is not available, because an approximate search misses "
            "neighbours in ways that cannot be followed along a line; use index='exact'"
        )
    if score.reference is not None:
        return numbers(score.reference)
    if score.file is None:
        raise NotAvailableError(
            f"accepted_by={kind} with references in a Dask array is not available, because each piece of the "
            "line needs them; fit on an array in memory"
        )
    rows = score._references().rows
    return numbers(rows.block(0, rows.shape[0]))
