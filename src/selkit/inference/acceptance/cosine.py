"""Cosine distances to the nearest references, along a line."""

from __future__ import annotations

import numpy as np

from selkit.inference.acceptance.neighbors import (
    Affine,
    Lengths,
    candidates,
    chunks,
    joined,
    order_of,
    references_of,
    rows_of_both,
)
from selkit.inference.acceptance.sets import ScoreSet, register
from selkit.inference.acceptance.solve import difference_below, quadratic_below
from selkit.inference.acceptance.spans import Floats, Index, Mask, Spans, covered
from selkit.scores.neighbors import CosineScore


@register(CosineScore)
class CosineSet(ScoreSet):
    """Cosine distances to the nearest references: a line's lead over a multiple of a length.

    Parameters
    ----------
    score
        Fitted.
    """

    def __init__(self, score: CosineScore) -> None:
        self.project = Affine.of_projection(score.projection)
        rows = references_of(score)
        self.unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self.k, self.stat = score.k, score.stat

    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold."""
        start, stop = self.project(start), self.project(stop)
        solve = self._mean_below if self.stat == "mean" and self.k > 1 else self._order_below
        parts = [
            (rows, solve(start[rows], stop[rows], threshold)) for rows in chunks(len(start), len(self.unit))
        ]
        found = joined(parts, len(start))
        # A zero vector has no direction: its distance is 1 by definition.
        zero: Mask = np.all(start == 0, axis=1) & np.all(stop == 0, axis=1)
        keep = ~zero[found.row]
        found = Spans(found.row[keep], found.low[keep], found.high[keep], len(start))
        return rows_of_both(Spans.where(zero & np.asarray(threshold >= 1.0)), found)

    def _order_below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        count, cosine = len(start), 1.0 - threshold
        middle, step = (start + stop) / 2, stop - start
        length = np.linalg.norm(middle, axis=1)
        lead = middle @ self.unit.T - (cosine * length)[:, None]
        error = 16 * (start.shape[1] + 8) * np.finfo(np.float64).eps * length
        reach = (np.linalg.norm(step, axis=1) / 2 * (1 + abs(cosine)) + error)[:, None]
        surely = lead >= reach
        missing = order_of(self.stat, self.k) - surely.sum(1)
        maybe = ~surely & (lead >= -reach)
        whole = missing <= 0
        maybe[whole | (maybe.sum(1) < missing)] = False
        row, point = np.nonzero(maybe)
        inside = _within_angle(
            row.astype(np.int64), start[row], step[row], self.unit[point], threshold=threshold, count=count
        )
        return rows_of_both(Spans.where(whole), covered(inside, np.maximum(missing, 1)))

    def _mean_below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        cosine = 1.0 - threshold
        first, last = start @ self.unit.T, stop @ self.unit.T
        at_least = -np.partition(-np.minimum(first, last), self.k - 1, axis=1)[:, self.k - 1]
        point, valid = candidates(np.maximum(first, last) >= at_least[:, None])
        first, last = (np.take_along_axis(end, point, 1) for end in (first, last))
        lengths = Lengths(start, stop - start)

        def parts(t: Floats, rows: Index) -> tuple[Floats, Floats, Floats, Floats]:
            rise = last[rows] - first[rows]
            value = np.where(valid[rows], first[rows] + t[:, None] * rise, -np.inf)
            chosen = np.argpartition(-value, self.k - 1, axis=1)[:, : self.k]
            most = np.take_along_axis(value, chosen, 1).mean(1)
            steep = np.take_along_axis(rise, chosen, 1).mean(1)
            length, slope = lengths.at(t, rows)
            up, down = max(cosine, 0.0), max(-cosine, 0.0)
            return up * length, up * slope, most + down * length, steep + down * slope

        return difference_below(parts, len(start))


def _within_angle(
    row: Index, start: Floats, step: Floats, unit: Floats, *, threshold: float, count: int
) -> Spans:
    """Where ``1 - cos`` of the angle to a unit vector is at most a threshold.

    It passes the threshold only where ``|x - (u x) u|^2 = threshold (2 - threshold) |x|^2``, which needs no
    difference of nearly equal cosines; the sign between these places is looked up.
    """
    along, along_step = (np.einsum("md,md->m", unit, part) for part in (start, step))
    side, side_step = start - along[:, None] * unit, step - along_step[:, None] * unit
    share = threshold * (2.0 - threshold)
    a, b, c = (
        np.einsum("md,md->m", p, q) - share * np.einsum("md,md->m", r, s)
        for p, q, r, s in (
            (side_step, side_step, step, step),
            (side, side_step, start, step),
            (side, side, start, start),
        )
    )
    each = np.arange(len(row), dtype=np.int64)
    low = quadratic_below(each, a, 2 * b, c, len(row))
    edges = np.concatenate([low.low, low.high, np.zeros(len(row)), np.ones(len(row))])
    owner = np.concatenate([low.row, low.row, each, each])
    order = np.lexsort((edges, owner))
    edges, owner = edges[order], owner[order]
    cell = np.flatnonzero((owner[1:] == owner[:-1]) & (edges[1:] > edges[:-1]))
    owner, begin, end = owner[cell], edges[cell], edges[cell + 1]
    middle = (begin + end) / 2
    length = np.linalg.norm(start[owner] + middle[:, None] * step[owner], axis=1)
    keep = along[owner] + middle * along_step[owner] >= (1.0 - threshold) * length
    return covered(Spans.of(owner[keep], begin[keep], end[keep], len(row))).moved(row, count)
